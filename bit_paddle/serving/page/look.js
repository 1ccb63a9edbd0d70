// Classify pictures: one with its bars and its map, many as a grid with filters.

import { announce, bars, find, make, roving, tellOthers, track } from "./parts.js";
import { choose, forEach, photograph, takeDrops } from "./pictures.js";
import { sendPicture } from "./server.js";
import { percent, plain, say, tell } from "./words.js";

const TOP = 5; // classes that are shown

const UNKNOWN = "5%"; // share of the known pictures that may be called unknown

let model = null;
let question = ""; // of every request, such as "?top=5"
let stopper = new AbortController();
let selected = null;
const items = []; // {picture, tile, classes, unknown, fault, maps, chosen}, in the given order

export function start(found) {
  model = found;
  const values = new URLSearchParams({ top: TOP });
  if (model.calibrated) values.set("calibrated", "true");
  if (model.unknown) values.set("unknown", UNKNOWN);
  question = `predict?${values}`;
  find("by-unknown-label").hidden = !model.unknown;
  find("map-control").hidden = !model.maps;
  if (!model.outputs) tell(find("look-note"), "noClasses");
  for (const id of ["look-files", "look-folder", "look-camera"]) find(id).disabled = !model.outputs;
}

choose(find("look-files"), add);
choose(find("look-folder"), add, true);
photograph(find("look-camera"), add);
takeDrops(find("look"), add);
roving(find("grid"), (button) => select(itemOf(button)));
find("filters").addEventListener("input", refresh);
find("filters").addEventListener("submit", (event) => event.preventDefault());
find("strength").addEventListener("input", setStrength);
find("previous").onclick = () => step(-1);
find("next").onclick = () => step(1);
find("stop").onclick = () => stopper.abort();
find("clear").onclick = clear;

export const paste = add;

// --- The pictures -------------------------------------------------------------------------------

async function add(found) {
  tellOthers(find("look-note"), found);
  if (!model?.outputs || !found.pictures.length) return;
  if (stopper.signal.aborted) stopper = new AbortController();
  const { signal } = stopper;
  const added = found.pictures.map((picture) => ({ picture, maps: new Map() }));
  for (const item of added) {
    item.tile = newTile(item);
    items.push(item);
  }
  find("found").hidden = false;
  find("look-drop").classList.add("slim");
  select(added[0]);
  refresh();
  await forEach(added, (item) => classify(item, signal), signal);
  for (const item of added) if (!isDone(item)) item.fault = say("stopped");
  added.forEach(showTile);
  if (added.includes(selected)) showDetail();
  refresh();
  announce(added.length === 1 ? sentenceOf(added[0]) : say("count", added.length));
}

const isDone = (item) => Boolean(item.classes || item.fault);

async function classify(item, signal) {
  try {
    const response = await sendPicture(question, item.picture.file, { signal });
    const [answer] = (await response.json()).predictions;
    if (answer.error) item.fault = say("server", answer.error);
    else [item.classes, item.unknown] = [answer.classes, answer.unknown === true];
  } catch (error) {
    if (error.name === "AbortError") return;
    item.fault = error.message;
  }
  showTile(item);
  if (item === selected) showDetail();
  refresh();
}

function sentenceOf({ picture, classes, fault, unknown }) {
  if (fault) return `${picture.name}: ${fault}`;
  if (unknown) return `${picture.name}: ${say("unknown")}`;
  return `${picture.name}: ${say("at", classes[0].name, classes[0].probability)}`;
}

function clear() {
  stopper.abort();
  for (const { picture, maps } of items) {
    picture.forget();
    maps.forEach((address) => URL.revokeObjectURL(address));
  }
  items.length = 0;
  selected = null;
  find("grid").replaceChildren();
  find("found").hidden = true;
  find("look-drop").classList.remove("slim");
  find("look-files").focus();
}

// --- The grid -----------------------------------------------------------------------------------

const tiles = new WeakMap(); // button -> item

const itemOf = (button) => tiles.get(button);

function newTile(item) {
  const button = make("button", { type: "button", className: "tile", tabIndex: -1 });
  tiles.set(button, item);
  button.append(item.picture.image(), make("span", { className: "words" }));
  button.onclick = () => {
    select(item);
    if (matchMedia("(max-width: 899px)").matches) find("detail").scrollIntoView();
  };
  const tile = make("li", {}, button);
  find("grid").append(tile);
  item.tile = tile;
  showTile(item);
  return tile;
}

function showTile({ tile, classes, unknown, fault }) {
  const button = tile.firstChild;
  const words = button.lastChild;
  button.classList.toggle("broken", Boolean(fault));
  button.title = fault || "";
  if (fault) {
    words.replaceChildren(tell(make("span", { className: "name" }), "failed"));
  } else if (!classes) {
    words.replaceChildren(tell(make("span", { className: "name" }), "waiting"));
  } else {
    const [{ name, probability }] = classes;
    const title = make("span", { className: "name" });
    if (unknown) tell(title, "unknown");
    else title.textContent = name;
    const share = make("span", { className: "percent" }, unknown ? "?" : percent(probability));
    words.replaceChildren(title, " ", share, track(unknown ? 0 : probability));
  }
}

let planned = false;

// Show the grid by its filters, at most once per frame of the screen.
export function refresh() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    showFilters();
    showGrid();
  });
}

const answerOf = (item) => (item.classes && !item.unknown ? item.classes[0].name : null);

function showFilters() {
  const counts = new Map();
  for (const name of items.map(answerOf).filter((name) => name !== null)) {
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  const menu = find("by-class");
  const wanted = menu.value;
  const rows = [...counts].sort((one, two) => two[1] - one[1] || one[0].localeCompare(two[0]));
  const options = rows.map(([name, count]) => new Option(say("classOf", name, count), `=${name}`));
  menu.replaceChildren(new Option(say("allClasses", items.length), ""), ...options);
  menu.value = counts.has(wanted.slice(1)) ? wanted : "";
  tell(find("confidence-word"), "confidence", find("by-confidence").value / 100);
}

function showGrid() {
  const [byClass, byUnknown] = [find("by-class").value, find("by-unknown").value];
  const least = find("by-confidence").value / 100;
  const free = !byClass && !byUnknown && !least;
  const fits = (item) => {
    if (!item.classes) return free;
    if (byClass && answerOf(item) !== byClass.slice(1)) return false;
    if (byUnknown && item.unknown !== (byUnknown === "unknown")) return false;
    return item.classes[0].probability >= least;
  };
  for (const item of items) item.tile.hidden = !fits(item);
  showOrder();
  const shown = items.filter((item) => !item.tile.hidden);
  const done = items.filter(isDone).length;
  const busy = done < items.length;
  if (busy) tell(find("shown"), "progress", done, items.length);
  else if (!shown.length) tell(find("shown"), "none");
  else tell(find("shown"), "shown", shown.length, items.length);
  Object.assign(find("progress"), { hidden: !busy, max: items.length || 1, value: done });
  find("stop").hidden = !busy;
  find("list").classList.toggle("single", items.length < 2);
  for (const id of ["previous", "next"]) find(id).hidden = shown.length < 2;
  reachOne(shown);
}

function showOrder() {
  const order = find("by-order").value;
  const sure = (item) => (item.classes ? item.classes[0].probability : -1);
  const sign = { given: 0, most: -1, least: 1 }[order];
  const rows = [...items].sort((one, two) => sign * (sure(one) - sure(two)));
  const before = [...find("grid").children];
  if (rows.some((item, place) => item.tile !== before[place])) {
    const { activeElement } = document;
    find("grid").replaceChildren(...rows.map((item) => item.tile));
    activeElement.focus({ preventScroll: true });
  }
}

// The Tab key reaches the selected tile, or the first that is shown; arrow keys reach the others.
function reachOne(shown) {
  const one = shown.includes(selected) ? selected : shown[0];
  for (const item of items) {
    const button = item.tile.firstChild;
    button.tabIndex = item === one ? 0 : -1;
    button.setAttribute("aria-pressed", item === selected);
  }
}

// --- One picture --------------------------------------------------------------------------------

function select(item) {
  selected = item;
  showDetail();
  refresh();
}

function step(by) {
  const order = [...find("grid").children].filter((tile) => !tile.hidden);
  const here = order.indexOf(selected?.tile);
  const tile = order[(here + by + order.length) % order.length];
  select(itemOf(tile.firstChild));
  tile.scrollIntoView({ block: "nearest" });
  announce(isDone(selected) ? sentenceOf(selected) : selected.picture.name);
}

function showDetail() {
  const { picture, classes, fault, unknown } = selected;
  const answer = find("answer");
  Object.assign(find("detail-name"), { textContent: picture.name, title: picture.path });
  const photo = find("detail").querySelector(".photo");
  if (photo.firstChild?.src !== picture.address) photo.replaceChildren(picture.image());
  find("map-control").hidden = !model.maps || !classes;
  if (fault) {
    answer.replaceChildren(make("p", { className: "fault" }, fault));
  } else if (!classes) {
    answer.replaceChildren(tell(make("p", { className: "note" }), "waiting"));
  } else {
    selected.chosen ||= classes[0].name;
    const pressed = document.activeElement?.closest("#answer .bar");
    answer.replaceChildren();
    if (unknown) answer.append(tell(make("p", { className: "strange" }), "unknownNear"));
    const list = isPerClass() ? bars(classes, selected.chosen, showClass) : bars(classes);
    answer.append(list);
    if (pressed) list.querySelector("[aria-pressed=true]").focus();
    if (model.maps) showMap(selected);
  }
}

// --- The map ------------------------------------------------------------------------------------

// A local head has one map for all classes: its attention.
const isPerClass = () => model.maps && model.head !== "local";

function showClass(name) {
  selected.chosen = name;
  showDetail();
}

let mapStopper = new AbortController();

async function showMap(item) {
  mapStopper.abort();
  mapStopper = new AbortController();
  const { chosen, maps } = item;
  const note = find("map-note");
  try {
    if (!maps.has(chosen)) {
      const wanted = isPerClass() ? `explain?${new URLSearchParams({ label: chosen })}` : "explain";
      const { signal } = mapStopper;
      const response = await sendPicture(wanted, item.picture.file, { signal });
      maps.set(chosen, URL.createObjectURL(await response.blob()));
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    plain(note, error.message);
    return;
  }
  if (item !== selected || chosen !== item.chosen) return;
  const photo = find("detail").querySelector(".photo");
  photo.querySelector(".map")?.remove();
  photo.append(make("img", { className: "map", alt: "", src: maps.get(chosen) }));
  setStrength();
  if (isPerClass()) tell(note, "mapNote", chosen);
  else tell(note, "mapAttention");
}

function setStrength() {
  const map = find("detail").querySelector(".map");
  map?.style.setProperty("opacity", find("strength").value / 100);
}
