/* Small conveniences; the pages work without them. */
document$.subscribe(() => {
  // Instant navigation keeps the header: its language menu must lead to the page that is shown now.
  const here = location.pathname.slice(new URL(__md_scope).pathname.length)
  for (const link of document.querySelectorAll(".md-select__link[hreflang]")) link.href = new URL(`../${link.hreflang}/${here}`, __md_scope)

  // What scrolls in its own box can be reached and scrolled with the keyboard.
  for (const box of document.querySelectorAll("math[display=block], .drawing, .scroll")) if (box.scrollWidth > box.clientWidth) box.tabIndex = 0

  // The filters work by CSS alone; what is chosen is kept in the address, so that a selection can be linked and survives a reload.
  for (const form of document.querySelectorAll("form.filters")) {
    const given = new URLSearchParams(location.search)
    for (const field of form.elements) {
      if (field.type === "checkbox") field.checked = given.has(field.name)
      else if (field.name) field.value = [...field.options].some(({ value }) => value === given.get(field.name)) ? given.get(field.name) : ""
    }
    const remember = () => {
      const chosen = new URLSearchParams([...new FormData(form)].filter(([, value]) => value)).toString()
      history.replaceState(history.state, "", location.pathname + (chosen && `?${chosen}`) + location.hash)
    }
    form.addEventListener("change", remember)
    form.addEventListener("reset", () => setTimeout(remember))
    form.addEventListener("submit", event => event.preventDefault())
  }
})
