/* Japanese queries. The theme's worker looks up Han runs of a query piece by piece, but takes 「注意機構の計算」 or 「LoRAとは」 for one
   word. Here a query is parted where its scripts change before the worker sees it; particles and endings in hiragana, which the
   index has cut off too, are left out unless the query has nothing else. */
(() => {
  const QUERY = 2 // the worker's message types: setup 0, ready 1, query 2, result 3
  const runs = /\p{Script=Han}+|[\p{Script=Katakana}ー]+|\p{Script=Hiragana}+|[^\p{Script=Han}\p{Script=Katakana}\p{Script=Hiragana}ー]+/gu

  const part = text => {
    const parts = text.normalize("NFKC").split(/\s+/).flatMap(word => word.match(runs) ?? [])
    const kept = parts.filter(run => !/^\p{Script=Hiragana}+$/u.test(run))
    return (kept.length ? kept : parts).join(" ")
  }

  const send = Worker.prototype.postMessage
  Worker.prototype.postMessage = function (message, ...rest) {
    const asked = message?.type === QUERY && typeof message.data === "string" && /[\p{Script=Hiragana}\p{Script=Katakana}ー]/u.test(message.data)
    return send.call(this, asked ? { ...message, data: part(message.data) } : message, ...rest)
  }
})()
