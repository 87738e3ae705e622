/* The filters work by CSS alone; this keeps what is chosen in the address, so that a selection can be linked and survives a reload. */
document$.subscribe(() => {
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
