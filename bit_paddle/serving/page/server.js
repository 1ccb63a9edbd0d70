// Requests to the server: its key, waiting while it is busy, and its errors in words.

import { label, plain, say, tell } from "./words.js";

const KEPT = "bit_paddle key";

const TRIES = 20; // of a request to a server that is busy

const LONGEST_WAIT = 5; // seconds

export class ServerError extends Error {}

let limits = { body_mb: Infinity, image_mb: Infinity }; // megabytes, which are millions of bytes

let question = null; // the open question for the key; all requests wait for one answer

// Return the response of the server. Raises `ServerError` with a sentence for the user.
export async function send(path, { body, type, accept, signal } = {}) {
  for (let tries = 1; ; tries += 1) {
    const key = sessionStorage.getItem(KEPT);
    const headers = {};
    if (key) headers.Authorization = `Bearer ${bytes(key)}`;
    if (type) headers["Content-Type"] = type;
    if (accept) headers.Accept = accept;
    const response = await reach(path, {
      method: body === undefined ? "GET" : "POST",
      body,
      headers,
      signal,
    });
    if (response.ok) return response;
    if (response.status === 401) {
      if (sessionStorage.getItem(KEPT) === key) await askForKey(key !== null);
    } else if (response.headers.has("Retry-After") && tries < TRIES) {
      await wait(Number(response.headers.get("Retry-After")), signal);
    } else {
      throw new ServerError(await sentence(response));
    }
  }
}

// Return the UTF-8 of `text`, a letter per byte, as headers need it.
function bytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

// Set the limits of the server, as GET /model tells them. It may cut off a larger body without an
// answer, so that such a body is not sent.
export function setLimits(found) {
  limits = found;
}

export async function sendJson(path, content, signal) {
  const body = JSON.stringify(content);
  if (body.length > 1e6 * limits.body_mb) throw new ServerError(say("tooMuch", limits.body_mb));
  return send(path, { body, type: "application/json", signal });
}

// Return the response for one picture, which is sent as it is.
export async function sendPicture(path, file, options = {}) {
  if (file.size > 1e6 * limits.image_mb) throw new ServerError(say("tooLarge", limits.image_mb));
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return send(path, { body: file, type, ...options });
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(say("unreachable"));
  }
}

async function sentence(response) {
  try {
    const { error } = await response.json();
    return say("server", String(error));
  } catch {
    return say("wrongAnswer", response.status);
  }
}

function wait(seconds, signal) {
  const time = 1000 * Math.min(LONGEST_WAIT, Math.max(0.2, seconds || 1));
  return new Promise((resolve, reject) => {
    setTimeout(resolve, time);
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

function askForKey(refused) {
  question ||= ask(refused).finally(() => (question = null));
  return question;
}

function ask(refused) {
  const dialog = document.getElementById("key");
  const input = dialog.querySelector("input");
  const fault = dialog.querySelector("[role=alert]");
  if (refused) tell(fault, "badKey");
  else plain(fault, "");
  input.value = "";
  label(dialog, "keyTitle");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => {
      if (dialog.returnValue === "send" && input.value) {
        sessionStorage.setItem(KEPT, input.value.trim());
        resolve();
      } else {
        reject(new ServerError(say("keyMissing")));
      }
    };
  });
}
