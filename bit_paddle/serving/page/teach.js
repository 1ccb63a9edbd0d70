// Teach new classes: their pictures become features, and the features a new last layer.

import { getFeatures, learnFrom, MOST, savedModel } from "./lessons.js";
import { announce, bars, find, make, report, tellOthers } from "./parts.js";
import { choose, forEach, photograph, takeDrops } from "./pictures.js";
import { ServerError } from "./server.js";
import { label, percent, plain, say, tell } from "./words.js";

const SHOWN = 5; // classes of a tried picture

const classes = []; // {input, card, list, counted, labels, lessons}

const tries = []; // {picture, features, fault, item}; a lesson of a class has the same, and a mark

let learned = null; // the last result of `learnFrom`

let saved = true; // whether leaving the page loses nothing

export function start() {
  if (classes.length) return;
  addClass();
  addClass();
  showResult();
}

choose(find("teach-folder"), addFolders, true);
choose(find("try-files"), addTries);
photograph(find("try-camera"), addTries);
takeDrops(find("try-drop"), addTries);
takeDrops(find("teach"), (found) => (areFolders(found) ? addFolders : addTries)(found));
find("add-class").onclick = () => addClass()?.input.select();
find("save").onclick = save;
addEventListener("beforeunload", (event) => {
  if (!saved) event.preventDefault();
});

// A pasted picture belongs to the class that has the focus or the mouse, or else is tried.
export function paste(found, target) {
  const card = target.closest?.(".class") || document.querySelector(".class:hover");
  const own = classes.find((one) => one.card === card);
  if (own) addLessons(own, found);
  else addTries(found);
}

// --- Classes ------------------------------------------------------------------------------------

function addClass(name = say("defaultName", classes.length + 1)) {
  if (classes.length >= MOST.classes) {
    tell(find("teach-note"), "tooManyClasses", MOST.classes);
    return null;
  }
  const one = {
    input: make("input", { value: name, maxLength: 200, autocomplete: "off", required: true }),
    list: make("ul", { className: "thumbs" }),
    counted: make("p", { className: "note" }),
    lessons: [],
  };
  const remove = make("button", { type: "button", className: "round" }, "×");
  const more = tell(make("button", { type: "button" }), "add");
  const camera = tell(make("button", { type: "button" }), "camera");
  one.labels = () => {
    label(one.input, "className", classes.indexOf(one) + 1);
    label(remove, "removeClass", one.input.value);
    label(more, "addTo", one.input.value);
    label(camera, "cameraFor", one.input.value);
  };
  const hint = tell(make("p", { className: "hint" }), "dropTeach");
  one.card = make(
    "li",
    { className: "class card" },
    make("header", {}, one.input, remove),
    one.counted,
    one.list,
    hint,
    make("div", { className: "actions" }, more, camera),
  );
  classes.push(one);
  find("classes").append(one.card);
  const take = (found) => addLessons(one, found);
  choose(more, take);
  photograph(camera, take);
  takeDrops(one.card, take);
  remove.onclick = () => removeClass(one);
  one.input.oninput = () => {
    one.labels();
    learnSoon();
  };
  showClass(one);
  return one;
}

function removeClass(one) {
  const place = classes.indexOf(one);
  classes.splice(place, 1);
  one.card.remove();
  one.lessons.forEach(({ picture }) => picture.forget());
  classes.forEach((each) => each.labels());
  (classes[place] || classes[place - 1])?.input.focus();
  if (!classes.length) find("add-class").focus();
  learnSoon();
}

function showClass(one) {
  one.labels();
  one.card.classList.toggle("empty", !one.lessons.length);
  const row = learned?.leave_one_out.per_class[learned.used.indexOf(one)];
  one.counted.replaceChildren(tell(make("span"), "count", one.lessons.length));
  if (row?.images) {
    one.counted.append(" · ", tell(make("span"), "of", row.right, row.images));
  }
}

// --- Pictures -----------------------------------------------------------------------------------

const areFolders = ({ pictures }) => pictures.some(({ path }) => path.includes("/"));

// Each folder that holds pictures becomes a class.
function addFolders(found) {
  tellOthers(find("teach-note"), found);
  for (const one of classes.filter(({ lessons }) => !lessons.length)) {
    classes.splice(classes.indexOf(one), 1);
    one.card.remove();
  }
  const folders = new Map();
  for (const picture of found.pictures) {
    const name = picture.path.split("/").at(-2) ?? say("defaultName", classes.length + 1);
    folders.set(name, [...(folders.get(name) || []), picture]);
  }
  for (const [name, pictures] of folders) {
    const one = classes.find(({ input }) => input.value === name) || addClass(name);
    if (one) addLessons(one, { pictures, others: found.others });
  }
  if (!classes.length) addClass();
}

async function addLessons(one, found) {
  tellOthers(find("teach-note"), found);
  const free = MOST.images - classes.reduce((sum, { lessons }) => sum + lessons.length, 0);
  if (found.pictures.length > free) tell(find("teach-note"), "tooMany", MOST.images);
  const added = found.pictures.slice(0, free).map((picture) => ({ picture }));
  for (const lesson of added) {
    one.lessons.push(lesson);
    one.list.append(newThumb(one, lesson));
  }
  showClass(one);
  await forEach(added, async (lesson) => {
    await getFeatures(lesson);
    showThumb(lesson);
  });
  saved = false;
  learnSoon();
}

function newThumb(one, lesson) {
  const { picture } = lesson;
  const remove = make("button", { type: "button", className: "round" }, "×");
  label(remove, "remove", picture.name);
  lesson.mark = make("span", { className: "mark" });
  lesson.item = make("li", { className: "busy" }, picture.image(), lesson.mark, remove);
  remove.onclick = () => {
    const place = one.lessons.indexOf(lesson);
    one.lessons.splice(place, 1);
    lesson.item.remove();
    picture.forget();
    const next = one.lessons[place] || one.lessons[place - 1];
    (next?.item.querySelector("button") || one.input).focus();
    showClass(one);
    learnSoon();
  };
  return lesson.item;
}

const isDone = ({ features, fault }) => Boolean(features || fault);

function showThumb({ item, mark, fault, wrong, picture }) {
  item.classList.remove("busy");
  item.classList.toggle("broken", Boolean(fault));
  item.classList.toggle("wrong", Boolean(wrong));
  item.title = fault || picture.name;
  plain(mark, "");
  if (fault) tell(mark, "failed");
  else if (wrong) tell(mark, "looksLike", wrong);
}

// --- Learning -----------------------------------------------------------------------------------

let timer = null;
let stopper = new AbortController();

// Learn soon: many changes at once are one lesson.
function learnSoon() {
  clearTimeout(timer);
  stopper.abort();
  find("save").disabled = true;
  timer = setTimeout(learn, 100);
}

async function learn() {
  stopper.abort();
  stopper = new AbortController();
  const { signal } = stopper;
  let found = null;
  let fault = faultOf();
  try {
    found = await learnFrom(classes, tries, signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof ServerError)) throw error;
    fault = error.message;
  }
  if (signal.aborted) return;
  learned = found;
  report(find("teach-fault"), fault);
  showResult();
}

function faultOf() {
  const broken = [...classes.flatMap(({ lessons }) => lessons), ...tries].find((one) => one.fault);
  return broken && `${broken.picture.name}: ${broken.fault}`;
}

function showResult() {
  const { accuracy, right, images } = learned?.leave_one_out || {};
  const measured = typeof accuracy === "number";
  find("accuracy").textContent = measured ? percent(accuracy) : learned ? "–" : "";
  find("accuracy").hidden = !learned;
  const meaning = find("meaning");
  if (!learned) tell(meaning, "needTwo");
  else if (measured) {
    tell(meaning, "meaning", right, images);
  } else tell(meaning, "oneEach");
  const line = find("learned");
  line.replaceChildren();
  if (learned) {
    const [count, time] = ["from", "seconds"].map(() => make("span"));
    tell(count, "from", learned.lessons.length);
    line.append(count, " ", tell(time, "seconds", learned.seconds));
  }
  showLeftOut();
  classes.forEach(({ lessons }) => lessons.forEach((each) => (each.wrong = "")));
  learned?.lessons.forEach((each, place) => {
    const [answer, label] = [learned.predicted[place], learned.labels[place]];
    if (answer !== null && answer !== label) each.wrong = learned.names[answer];
  });
  classes.forEach(({ lessons }) => lessons.filter(isDone).forEach(showThumb));
  classes.forEach(showClass);
  tries.forEach(showTry);
  find("save").disabled = !learned;
}

function showLeftOut() {
  const rest = learned ? classes.filter((one) => !learned.used.includes(one)) : [];
  find("left-out").hidden = !rest.length;
  tell(find("left-out"), "leftOut", rest.map(({ input }) => input.value).join(", "));
}

export const refresh = showResult;

// --- Trying -------------------------------------------------------------------------------------

async function addTries(found) {
  tellOthers(find("teach-note"), found);
  const free = MOST.queries - tries.length;
  if (found.pictures.length > free) tell(find("teach-note"), "tooManyQueries", MOST.queries);
  const added = found.pictures.slice(0, free).map((picture) => ({ picture }));
  for (const one of added) {
    one.answer = make("div");
    const remove = make("button", { type: "button", className: "round" }, "×");
    label(remove, "remove", one.picture.name);
    remove.onclick = () => removeTry(one);
    one.item = make("li", {}, one.picture.image(), one.answer, remove);
    tries.unshift(one);
    find("tried").prepend(one.item);
    showTry(one);
  }
  await forEach(added, getFeatures);
  clearTimeout(timer);
  await learn();
  const [first] = added;
  if (added.length === 1 && first.probabilities) announce(`${first.picture.name}: ${best(first)}`);
}

function removeTry(one) {
  tries.splice(tries.indexOf(one), 1);
  one.item.remove();
  one.picture.forget();
  (find("tried").querySelector("button") || find("try-files")).focus();
}

const ranked = (one) =>
  learned.names
    .map((name, place) => ({ name, probability: one.probabilities[place] }))
    .sort((first, second) => second.probability - first.probability);

function best(one) {
  const [{ name, probability }] = ranked(one);
  return say("at", name, probability);
}

function showTry(one) {
  if (one.fault) one.answer.replaceChildren(make("p", { className: "fault" }, one.fault));
  else if (learned && one.probabilities) {
    one.answer.replaceChildren(bars(ranked(one).slice(0, SHOWN)));
  } else {
    const word = one.features && !learned ? "needTwo" : "waiting";
    one.answer.replaceChildren(tell(make("p", { className: "note" }), word));
  }
}

// --- Saving -------------------------------------------------------------------------------------

async function save() {
  const button = find("save");
  const [note, command] = find("saved").children;
  button.disabled = true;
  tell(note, "saving");
  command.hidden = true;
  try {
    const address = URL.createObjectURL(await savedModel(classes));
    make("a", { href: address, download: "model.npz" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    saved = true;
    tell(note, "saved");
    command.textContent = "bit_paddle predict photo.jpg --model model.npz";
    command.hidden = false;
  } catch (error) {
    plain(note, "");
    report(find("teach-fault"), error.message);
  }
  button.disabled = !learned;
}
