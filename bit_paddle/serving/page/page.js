// Start the page: its language, the model of the server, and the two views.

import * as look from "./look.js";
import { find, make, report } from "./parts.js";
import { takePastes } from "./pictures.js";
import { send, setLimits } from "./server.js";
import * as teach from "./teach.js";
import { firstLanguage, say, switchLanguage, tell, translate } from "./words.js";

const VIEWS = { look, teach };

let current = "look";

function show(name) {
  current = name in VIEWS ? name : "look";
  for (const view of Object.keys(VIEWS)) {
    find(view).hidden = view !== current;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${say(current)} · bit_paddle`;
}

function nameLanguage() {
  const button = find("language");
  const chinese = document.documentElement.lang === "zh-CN";
  button.textContent = chinese ? "English" : "中文";
  button.lang = chinese ? "en" : "zh-CN";
  document.title = `${say(current)} · bit_paddle`;
}

function tellModel(model) {
  const line = find("model");
  line.textContent = [model.name, model.network].filter(Boolean).join(" · ");
  if (model.classes.length) {
    line.append(" · ", tell(make("span"), "classes", model.outputs));
  }
  const facts = {
    factFile: model.name,
    factNetwork: model.network,
    factClasses: model.classes.slice(0, 12).join(", ") + (model.classes.length > 12 ? ", …" : ""),
    factFeatures: model.features,
    factPreprocessing: model.preprocessing,
    factLoss: model.loss,
    factVersion: model.version,
  };
  find("facts").replaceChildren();
  for (const [word, value] of Object.entries(facts)) {
    if (value === "" || value === undefined) continue;
    find("facts").append(tell(make("dt"), word), make("dd", {}, String(value)));
  }
  if (model.calibrated) find("facts").append(tell(make("dd"), "calibrated"));
}

async function start() {
  const fault = find("fault");
  report(fault.firstElementChild, "");
  fault.hidden = true;
  try {
    const model = await (await send("model")).json();
    setLimits(model.limits);
    tellModel(model);
    look.start(model);
    teach.start(model);
    if (!model.outputs && !location.hash) show("teach");
  } catch (error) {
    report(fault.firstElementChild, error.message);
    fault.hidden = false;
  }
}

translate(firstLanguage());
nameLanguage();
show(location.hash.slice(1));
addEventListener("hashchange", () => show(location.hash.slice(1)));
find("language").onclick = () => {
  switchLanguage();
  nameLanguage();
  look.refresh();
  teach.refresh();
};
find("fault").querySelector("button").onclick = start;
takePastes((found, target) => VIEWS[current].paste(found, target));
for (const kind of ["dragover", "drop"]) {
  addEventListener(kind, (event) => event.preventDefault()); // a missed drop opens no file
}
start();
