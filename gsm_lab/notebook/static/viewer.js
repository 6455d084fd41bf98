function render({ model, el }) {
  el.style.display = "none";
  // A frame counts as seen when the page is painted after it; a page nobody looks at is not painted.
  const seen = () => requestAnimationFrame(() => {
    model.send({ seen: model.get("frame") });
  });
  const keep = (name, type, bytes) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
  const act = (message, buffers) => {
    if (message.copy !== undefined && navigator.clipboard) navigator.clipboard.writeText(message.copy).catch(() => {});
    if (message.file !== undefined) keep(message.file, message.type, buffers[0]);
  };
  // The kernel lays the plots out, so it has to know for what width.
  let told = 0, observer = null;
  const measure = (entries) => {
    const width = Math.round(entries[0].contentRect.width);
    if (width && Math.abs(width - told) >= 4) model.send({ width: (told = width), page: window.innerWidth });
  };
  const find = (tries) => requestAnimationFrame(() => {  // it is in the page a moment after this
    const board = el.closest(".gsm-playground");
    if (board) (observer = new ResizeObserver(measure)).observe(board);
    else if (tries) find(tries - 1);
  });
  find(100);
  model.on("change:frame", seen);
  model.on("msg:custom", act);
  model.send({ opened: true });
  seen();
  return () => { observer?.disconnect(); model.off("change:frame", seen); model.off("msg:custom", act); };
}
export default { render };
