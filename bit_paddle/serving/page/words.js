// All words of the page, in English and Chinese, and the language in use.
// A word is a text, or a function of values that returns one.

const KEPT = "bit_paddle language";

let language = "en";

const number = (value) => new Intl.NumberFormat(language).format(value);

export function percent(share) {
  const form = { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 };
  return new Intl.NumberFormat(language, form).format(share);
}

const whole = (share) => new Intl.NumberFormat(language, { style: "percent" }).format(share);

const pictures = (count) => (count === 1 ? "1 picture" : `${number(count)} pictures`);

export const words = {
  en: {
    add: "Add pictures",
    addClass: "Add a class",
    addTo: (name) => `Add pictures to ${name}`,
    again: "Try again",
    allClasses: (count) => `All classes (${number(count)})`,
    about: "About this model",
    anyKnown: "All",
    at: (name, share) => `${name} ${percent(share)}`,
    badKey: "The server refused this key. Please check it.",
    calibrated: "The probabilities are calibrated.",
    camera: "Camera",
    cameraFor: (name) => `Camera for ${name}`,
    cameraRefused: (reason) => `The camera cannot be used: ${reason}`,
    cancel: "Cancel",
    chooseFiles: "Choose pictures",
    chooseFolder: "Choose a folder",
    classFilter: "Class",
    className: (count) => `Name of class ${count}`,
    classOf: (name, count) => `${name} (${number(count)})`,
    clear: "Remove all",
    close: "Close",
    confidence: (share) => `Confidence from ${whole(share)}`,
    classes: (count) => (count === 1 ? "1 class" : `${number(count)} classes`),
    count: pictures,
    defaultName: (count) => `Class ${count}`,
    dropLook: "Drop pictures or a folder here, or paste a picture.",
    dropTeach: "Drop pictures here",
    dropTry: "Drop or paste other pictures here. They are classified at once.",
    factClasses: "Classes",
    factFeatures: "Features",
    factFile: "Model",
    factLoss: "Loss",
    factNetwork: "Network",
    factPreprocessing: "Preprocessing",
    factVersion: "bit_paddle",
    failed: "This picture cannot be used",
    folderTeach: "Choose a folder with one folder per class",
    from: (count) => `Learned from ${pictures(count)}`,
    heading: "Classify pictures",
    keyAsk: "This server needs a key. The key stays in this tab of the browser.",
    keyLabel: "Key",
    keyMissing: "The server needs a key. Reload the page to give it.",
    keyTitle: "Key of the server",
    known: "Known only",
    leftOut: (names) => `Not used, because it has no pictures yet: ${names}`,
    look: "Classify",
    looksLike: (name) => `Taken for ${name}`,
    map: "Map",
    mapAttention: "Bright places count more for the answer.",
    mapNote: (name) => `Bright places speak for “${name}”. Choose another class to see its map.`,
    mapStrength: "Strength of the map",
    meaning: (right, count) =>
      `${number(right)} of ${pictures(count)} are right. Each was classified by a layer that all ` +
      "the others taught (leave-one-out).",
    menu: "Parts of the page",
    needTwo: "Give pictures to two classes or more. The result then appears here.",
    next: "Next picture",
    noClasses: "This model has no classes. Teach it some.",
    noPictures: "No picture was found there.",
    notImages: (count) =>
      count === 1 ? "1 file is not a picture." : `${number(count)} files are not pictures.`,
    none: "No picture fits these filters.",
    of: (right, count) => `${number(right)} of ${number(count)} right`,
    oneEach: "Give each class a second picture: then the accuracy can be measured.",
    orderFilter: "Order",
    orderGiven: "As given",
    orderLeast: "Least sure first",
    orderMost: "Most sure first",
    photo: "Photo",
    previous: "Previous picture",
    privacy: "Pictures go only to this server. It keeps none of them.",
    progress: (done, count) => `${number(done)} of ${number(count)}`,
    remove: (name) => `Remove ${name}`,
    removeClass: (name) => `Remove the class ${name}`,
    result: "Result",
    sameName: (name) => `Two classes have the name “${name}”. Please rename one.`,
    save: "Save as a model",
    saved: "model.npz was saved. Use it with:",
    saving: "The model is being made …",
    seconds: (time) => `in ${number(Math.max(1, Math.round(1000 * time)))} ms`,
    send: "Send",
    server: (text) => text,
    shown: (shown, count) => `${number(shown)} of ${pictures(count)}`,
    stop: "Stop",
    stopped: "stopped",
    takePhoto: "Take the picture",
    teach: "Teach",
    teachHeading: "Teach new classes",
    teachIntro:
      "Name each class and give it a few pictures. The network stays as it is: it learns a new " +
      "last layer, at once.",
    tooLarge: (most) => `The file has more than ${number(most)} MB, the most that the server takes.`,
    tooMany: (most) => `At most ${number(most)} pictures can teach. The rest was left out.`,
    tooManyClasses: (most) => `At most ${number(most)} classes can be taught.`,
    tooManyQueries: (most) => `At most ${number(most)} pictures can be tried at a time.`,
    tooMuch: (most) =>
      `All pictures together are more than the server takes at once (${number(most)} MB). ` +
      "Remove some.",
    tryIt: "Try it",
    unknown: "unknown",
    unknownFilter: "Unknown",
    unknownNear: "Unknown. The nearest classes are:",
    unknownOnly: "Unknown only",
    unreachable: "The server does not answer. Is it still running?",
    view: "The picture and its map",
    waiting: "waiting …",
    wrongAnswer: (status) => `The server answered with status ${status}.`,
  },
  zh: {
    add: "添加图片",
    addClass: "添加类别",
    addTo: (name) => `为“${name}”添加图片`,
    again: "重试",
    allClasses: (count) => `所有类别（${number(count)}）`,
    about: "关于此模型",
    anyKnown: "全部",
    at: (name, share) => `${name} ${percent(share)}`,
    badKey: "服务器不接受此密钥，请检查。",
    calibrated: "概率已校准。",
    camera: "摄像头",
    cameraFor: (name) => `摄像头：“${name}”`,
    cameraRefused: (reason) => `无法使用摄像头：${reason}`,
    cancel: "取消",
    chooseFiles: "选择图片",
    chooseFolder: "选择文件夹",
    classFilter: "类别",
    className: (count) => `第 ${count} 个类别的名称`,
    classOf: (name, count) => `${name}（${number(count)}）`,
    clear: "全部移除",
    close: "关闭",
    confidence: (share) => `置信度：不低于 ${whole(share)}`,
    classes: (count) => `${number(count)} 个类别`,
    count: (count) => `${number(count)} 张图片`,
    defaultName: (count) => `类别 ${count}`,
    dropLook: "把图片或文件夹拖到这里，也可以粘贴图片。",
    dropTeach: "把图片拖到这里",
    dropTry: "把其他图片拖到这里，或粘贴图片，立即得到结果。",
    factClasses: "类别",
    factFeatures: "特征数",
    factFile: "模型",
    factLoss: "损失函数",
    factNetwork: "网络",
    factPreprocessing: "预处理",
    factVersion: "bit_paddle",
    failed: "此图片无法使用",
    folderTeach: "选择文件夹（每个类别一个子文件夹）",
    from: (count) => `从 ${number(count)} 张图片中学习`,
    heading: "图片分类",
    keyAsk: "此服务器需要密钥。密钥只保存在浏览器的这个标签页中。",
    keyLabel: "密钥",
    keyMissing: "服务器需要密钥。请重新加载页面并输入。",
    keyTitle: "服务器密钥",
    known: "仅已知",
    leftOut: (names) => `尚无图片，未使用：${names}`,
    look: "分类",
    looksLike: (name) => `被认作“${name}”`,
    map: "激活图",
    mapAttention: "明亮的位置对结果更重要。",
    mapNote: (name) => `明亮的位置支持“${name}”。选择其他类别可查看它的激活图。`,
    mapStrength: "激活图的强度",
    meaning: (right, count) =>
      `${number(count)} 张图片中 ${number(right)} 张判断正确：每张图片都由其余图片教出的输出层来判断（留一法）。`,
    menu: "页面的各部分",
    needTwo: "请为至少两个类别添加图片，结果会显示在这里。",
    next: "下一张图片",
    noClasses: "此模型没有类别，请先教它。",
    noPictures: "没有找到图片。",
    notImages: (count) => `${number(count)} 个文件不是图片。`,
    none: "没有符合筛选条件的图片。",
    of: (right, count) => `${number(count)} 张中 ${number(right)} 张正确`,
    oneEach: "请给每个类别再添加一张图片，然后即可测量准确率。",
    orderFilter: "顺序",
    orderGiven: "原有顺序",
    orderLeast: "最不确定的在前",
    orderMost: "最确定的在前",
    photo: "照片",
    previous: "上一张图片",
    privacy: "图片只发送到此服务器，服务器不保存图片。",
    progress: (done, count) => `${number(done)} / ${number(count)}`,
    remove: (name) => `移除 ${name}`,
    removeClass: (name) => `移除类别“${name}”`,
    result: "结果",
    sameName: (name) => `有两个类别都叫“${name}”，请修改其中一个。`,
    save: "保存为模型",
    saved: "model.npz 已保存。使用方法：",
    saving: "正在生成模型……",
    seconds: (time) => `用时 ${number(Math.max(1, Math.round(1000 * time)))} 毫秒`,
    send: "发送",
    server: (text) => `服务器的回答：${text}`,
    shown: (shown, count) => `显示 ${number(shown)} / ${number(count)} 张图片`,
    stop: "停止",
    stopped: "已停止",
    takePhoto: "拍照",
    teach: "教学",
    teachHeading: "教它新的类别",
    teachIntro: "为每个类别命名，并添加几张图片。网络本身不变，只是立即学会一个新的输出层。",
    tooLarge: (most) => `文件超过 ${number(most)} MB，这是服务器的上限。`,
    tooMany: (most) => `最多可以用 ${number(most)} 张图片教学，其余未使用。`,
    tooManyClasses: (most) => `最多可以教 ${number(most)} 个类别。`,
    tooManyQueries: (most) => `一次最多可以试 ${number(most)} 张图片。`,
    tooMuch: (most) => `所有图片的数据超过服务器一次可接收的上限（${number(most)} MB），请移除一些。`,
    tryIt: "试一试",
    unknown: "未知",
    unknownFilter: "未知",
    unknownNear: "未知。最接近的类别：",
    unknownOnly: "仅未知",
    unreachable: "服务器没有应答，它还在运行吗？",
    view: "图片和激活图",
    waiting: "等待中……",
    wrongAnswer: (status) => `服务器返回状态码 ${status}。`,
  },
};

export function say(key, ...values) {
  const word = words[language][key];
  return typeof word === "function" ? word(...values) : word;
}

// --- Words on the page --------------------------------------------------------------------------
// An element with data-word shows that word; data-label is a word for screen readers. The values
// of a word are kept, so that another language needs nothing but `translate`.

const kept = new WeakMap(); // element -> {word: values}

export function tell(element, key, ...values) {
  return set(element, "word", key, values);
}

export function label(element, key, ...values) {
  return set(element, "label", key, values);
}

// Show a text that is the same in every language, such as a sentence of the server.
export function plain(element, text) {
  delete element.dataset.word;
  element.textContent = text;
}

function set(element, kind, key, values) {
  element.dataset[kind] = key;
  kept.set(element, { ...kept.get(element), [kind]: values });
  show(element);
  return element;
}

function show(element) {
  const { word, label } = element.dataset;
  const values = kept.get(element) || {};
  if (word) element.textContent = say(word, ...(values.word || []));
  if (label) element.setAttribute("aria-label", say(label, ...(values.label || [])));
}

export function translate(wanted) {
  language = wanted;
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.querySelectorAll("[data-word], [data-label]").forEach(show);
}

export function firstLanguage() {
  const wanted = localStorage.getItem(KEPT) || navigator.language;
  return wanted.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function switchLanguage() {
  const wanted = language === "zh" ? "en" : "zh";
  localStorage.setItem(KEPT, wanted);
  translate(wanted);
}
