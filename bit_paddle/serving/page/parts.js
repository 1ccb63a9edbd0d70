// Small parts of the page that both views use.

import { percent, plain, tell } from "./words.js";

// Return a new element; `properties` are those of the DOM, `children` are elements or texts.
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const find = (id) => document.getElementById(id);

// Read `text` to the users of screen readers.
export function announce(text) {
  find("said").textContent = text;
}

// Show a sentence about a failure in `element`, or hide it.
export function report(element, text) {
  element.textContent = text || "";
  element.hidden = !text;
}

export function track(share) {
  const bar = make("span", { className: "track" }, make("span"));
  bar.firstChild.style.setProperty("--share", share);
  return bar;
}

// Return a list of classes with bars, best first. With `chosen` each is a button that calls
// `choose(name)`, and the one with the name `chosen` is pressed.
export function bars(classes, chosen = null, choose = null) {
  const list = make("ol", { className: "bars" });
  for (const { name, probability } of classes) {
    const row = make(choose ? "button" : "div", { className: "bar" });
    row.append(
      make("span", { className: "name" }, name),
      " ",
      make("span", { className: "percent" }, percent(probability)),
      track(probability),
    );
    if (choose) {
      row.type = "button";
      row.setAttribute("aria-pressed", name === chosen);
      row.onclick = () => choose(name);
    }
    list.append(make("li", {}, row));
  }
  return list;
}

// Tell in `element` that some files were no pictures, or that there were none.
export function tellOthers(element, { pictures, others }) {
  plain(element, "");
  if (others) tell(element, "notImages", others);
  else if (!pictures.length) tell(element, "noPictures");
}

// Keys for a list of buttons, of which one can be reached by the Tab key: arrows, Home and End.
export function roving(list, choose) {
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("li:not([hidden]) > button")];
    const here = buttons.indexOf(document.activeElement);
    if (here < 0) return;
    const row = buttons.filter((one) => one.offsetTop === buttons[0].offsetTop).length;
    const places = {
      ArrowLeft: here - 1,
      ArrowRight: here + 1,
      ArrowUp: here - row,
      ArrowDown: here + row,
      Home: 0,
      End: buttons.length - 1,
    };
    const next = buttons[places[event.key]];
    if (!(event.key in places)) return;
    event.preventDefault();
    if (!next) return;
    next.focus();
    choose(next);
  });
}
