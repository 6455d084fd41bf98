// A live figure. plotly.js is 5 MB, and a page needs most of a second to read it: plotly's own widget brings it with
// each figure. Here a widget of its own brings it (its `code`), which a page reads once, as soon as it is told of it.
const pages = (globalThis[Symbol.for("gsm_lab: plotly.js")] ??= new Map());

function read(model) {
  const version = model.get("version");
  if (!pages.has(version)) {
    const url = URL.createObjectURL(new Blob([model.get("code")], { type: "text/javascript" }));
    const reading = import(url).finally(() => URL.revokeObjectURL(url));
    pages.set(version, reading);
    reading.catch(() => pages.delete(version));
  }
  return pages.get(version);
}

// A page that is opened again makes its models side by side: the one that is asked for may come after this.
async function find(manager, reference) {
  for (let tries = 600; ; tries--) {
    try {
      const model = await manager.get_model(reference.replace("IPY_MODEL_", ""));
      if (model) return model;
    } catch (error) {
      if (!tries) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const TOLD = ["addTraces", "deleteTraces", "moveTraces", "restyle", "relayout", "update", "animate",
  "removeLayoutProps", "removeTraceProps"].map((name) => `_py2js_${name}`);

function figure(model, more) {
  // anywidget gives up a model that is not ready within two seconds, with all that it is told later: so it is ready at
  // once, and what it is told until plotly.js is there is kept, and done then, in order.
  const early = [];
  let doing = null, handlers = [];
  const keep = TOLD.map((name) => [`change:${name}`, () => {
    if (model.get(name) !== null) early.push([name, model.get(name)]);
  }]);
  keep.forEach(([event, act]) => model.on(event, act));
  const seen = {
    ...model,
    get: (name) => (doing && doing[0] === name ? doing[1] : model.get(name)),
    on: (event, act) => { handlers?.push([event, act]); model.on(event, act); },
  };
  return find(model.widget_manager, model.get("_plotly_js")).then(read).then((plotly) => {
    const made = typeof plotly.default === "function" ? plotly.default() : plotly.default;
    keep.forEach(([event, act]) => model.off(event, act));
    made.initialize({ ...more, model: seen });
    for (doing of early) {
      handlers.filter(([event]) => event === `change:${doing[0]}`).forEach(([, act]) => act());
    }
    doing = handlers = null;
    return made;
  });
}

export default () => {
  let made;
  return {
    initialize({ model, ...more }) {
      made = model.get("code") === undefined ? figure(model, more) : read(model);
      made.catch(() => {});  // said where it is to be shown
    },
    async render(context) { return (await made).render(context); },
  };
};
