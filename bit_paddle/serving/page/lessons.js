// What the server computes for teaching. It keeps nothing: the features stay in the page.

import { sendJson, sendPicture, ServerError } from "./server.js";
import { say } from "./words.js";

// As in serving/teaching.py.
export const MOST = { images: 2000, classes: 200, queries: 500 };

// Get the features of a picture, or a sentence about its fault.
export async function getFeatures(lesson) {
  try {
    const options = { accept: "application/octet-stream" };
    const response = await sendPicture("features", lesson.picture.file, options);
    lesson.features = new Float32Array(await response.arrayBuffer());
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    lesson.fault = error.message;
  }
}

// Return what the server learned from `classes`, and give each of `tries` its probabilities; null
// while fewer than two classes have pictures. The result is the server's answer, with the used
// classes, their names, the lessons in the order of the answer, and the time in seconds.
export async function learnFrom(classes, tries, signal) {
  const found = await lessonOf(classes);
  if (!found) return null;
  const asked = withFeatures(tries);
  const queries = await base64(asked.map(({ features }) => features));
  const started = performance.now();
  const response = await sendJson("teach", { ...found.body, queries }, signal);
  const answer = await response.json();
  const seconds = (performance.now() - started) / 1000;
  asked.forEach((one, place) => (one.probabilities = answer.queries[place]));
  return { ...answer, ...found, seconds };
}

// Return the model file with the classes, a blob.
export async function savedModel(classes) {
  const { body } = await lessonOf(classes);
  return (await sendJson("teach/save", body)).blob();
}

const withFeatures = (lessons) => lessons.filter(({ features }) => features);

async function lessonOf(classes) {
  const used = classes.filter(({ lessons }) => withFeatures(lessons).length);
  if (used.length < 2) return null;
  const names = used.map(({ input }) => input.value.trim());
  const twice = names.find((name, place) => names.indexOf(name) < place);
  if (twice !== undefined) throw new ServerError(say("sameName", twice));
  const pairs = used.flatMap((one, label) =>
    withFeatures(one.lessons).map((lesson) => ({ lesson, label })),
  );
  const lessons = pairs.map(({ lesson }) => lesson);
  const features = await base64(lessons.map((lesson) => lesson.features));
  const labels = pairs.map(({ label }) => label);
  return { used, names, lessons, labels, body: { features, labels, classes: names } };
}

// Return arrays of numbers, one after the other, in base64.
function base64(arrays) {
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => resolve(reader.result.split(",")[1] || "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(new Blob(arrays));
  });
}
