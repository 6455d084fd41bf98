function render({ model, el }) {
  el.style.display = "none";
  // A frame counts as seen when the page is painted after it; a page nobody looks at is not painted.
  const seen = () => requestAnimationFrame(() => {
    model.send({ seen: model.get("frame") });
  });
  const act = (message) => {
    if (message.copy !== undefined && navigator.clipboard) navigator.clipboard.writeText(message.copy).catch(() => {});
  };
  model.on("change:frame", seen);
  model.on("msg:custom", act);
  model.send({ opened: true });
  seen();
  return () => { model.off("change:frame", seen); model.off("msg:custom", act); };
}
export default { render };
