// Every word that the page says. Functions where a number or a name is said with it.

const megapixels = (width, height) => `${((width * height) / 1e6).toFixed(width * height < 1e6 ? 2 : 1)} MP`;

export const duration = (seconds) => {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
};

export const bytes = (count) => {
  if (count < 1e6) return `${Math.max(1, Math.round(count / 1e3))} kB`;
  return count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`;
};

export const text = {
  name: "Clearfold",
  parts: { denoise: "Denoise", train: "Train", models: "Models" },
  title: (part) => `Clearfold: ${part.toLowerCase()}`,
  navigation: "Parts",
  skip: "Skip to the pictures",
  interface: "API",
  help: "Keys",
  key: "API key",

  drop: {
    title: "Drop noisy pictures here",
    hint: "or paste one. They go to this service and nowhere else.",
    choose: "Choose pictures",
    camera: "Take a photo",
    now: "Let go to add them",
  },

  viewer: {
    label: "Picture. Arrow keys move it, plus and minus zoom, 0 fits it in, Z shows it pixel by pixel.",
    handle: "Line between before and after",
    before: "Before",
    after: "After",
    removed: (gain) => `What was removed, ${gain}× as strong`,
    split: (percent) => `${percent} % before, ${100 - percent} % after`,
    views: { before: "Before", split: "Split", after: "After", removed: "Removed" },
    viewsLabel: "What to show",
    zoomLabel: "Zoom",
    out: "Zoom out",
    in: "Zoom in",
    fit: "Fit",
    fitLabel: "Fit the picture in",
    actual: (percent) => `${percent} %`,
    actualLabel: "Zoom: show it pixel by pixel",
  },

  film: {
    label: "Pictures",
    add: "Add",
    addLabel: "Add pictures",
    remove: (name) => `Take ${name} out`,
    none: "no picture",
    states: {
      ready: "ready",
      waiting: "waiting",
      busy: "service busy",
      done: "done",
      stale: "settings changed",
      failed: "failed",
    },
    sending: (percent) => `sending ${percent} %`,
    working: "denoising",
  },

  settings: {
    label: "Settings",
    sigma: "Noise level",
    sigmaNumber: "Noise level, σ in 8-bit steps",
    auto: "Measure it",
    measured: "measured in this picture",
    unmeasured: "in each picture",
    own: "set by hand",
    strength: "Strength",
    presets: [
      { name: "Off", strength: 0, title: "Changes nothing" },
      { name: "Gentle", strength: 0.6, title: "Leaves some grain" },
      { name: "Natural", strength: 1, title: "What the noise level asks for" },
      { name: "Strong", strength: 1.4, title: "Smoother than the noise level asks for" },
    ],
    presetsLabel: "Strength in words",
    model: "Model",
    automatic: "Automatic",
    saving: "File",
    format: "Format",
    same: "As it came",
    formats: { png: "PNG", jpeg: "JPEG", webp: "WebP", tiff: "TIFF", avif: "AVIF", bmp: "BMP", gif: "GIF" },
    quality: "Quality",
    metadata: "Metadata",
    kept: { keep: "Keep all", safe: "Keep, without the place", strip: "Drop all" },
  },

  act: {
    denoise: "Denoise whole picture",
    all: (count) => `Denoise all ${count}`,
    cancel: "Cancel",
    cancelAll: "Cancel all",
    download: "Download",
    zip: (count) => `All as zip (${count})`,
    curl: "The same with curl",
    copy: "Copy",
    copied: "Copied",
    retry: "Try again",
    close: "Close",
    save: "Use it",
  },

  preview: {
    making: "Preview…",
    shown: (ms) => `Preview of what is seen, ${duration(ms / 1000)}`,
    large: "Zoom in for a preview, or denoise the whole picture",
    waiting: (seconds) => `The service is busy; the preview comes in ${seconds} s`,
  },

  progress: {
    label: "Progress",
    sending: (percent) => `Sending, ${percent} %`,
    waiting: "Waiting for its turn",
    busy: (seconds) => `The service is busy; trying again in ${seconds} s`,
    working: "Denoising",
    left: (seconds) => `Denoising, about ${duration(Math.max(1, seconds))} left`,
    over: "Denoising, nearly there",
  },

  facts: {
    label: "What was done",
    noise: "Noise level",
    noiseValue: (sigma, strength) => (strength === 1 ? `σ ${sigma}` : `σ ${sigma} × ${strength}`),
    model: "Model",
    device: "Device",
    time: "Time",
    size: "Picture",
    sizeValue: (width, height) => `${width} × ${height}, ${megapixels(width, height)}`,
    file: "File",
    dropped: "Left out",
    reason: "Because",
  },

  problem: {
    title: "That did not work",
    plain: (status) => `The service answered ${status} without saying why: its log may tell.`,
    unreachable: {
      title: "The service cannot be reached",
      detail: "It may have stopped, or the network is down: check that it runs, then try again.",
    },
    zip: { title: "No zip could be made", detail: "Download the pictures one by one." },
  },

  said: {
    added: (count) => (count === 1 ? "1 picture added" : `${count} pictures added`),
    removed: (name) => `${name} taken out`,
    done: (name) => `${name} is denoised`,
    failed: (name, why) => `${name}: ${why}`,
    cancelled: (name) => `${name}: cancelled`,
  },

  keys: {
    title: "Keys",
    list: [
      ["1  2  3  4", "before, split, after, what was removed"],
      ["O, held", "the original"],
      ["+  −", "zoom; the wheel and two fingers too"],
      ["0", "fit the picture in"],
      ["Z", "pixel by pixel"],
      ["arrows", "move the picture, or the line when that has the focus"],
      ["[  ]", "previous and next picture"],
      ["Enter", "denoise the whole picture"],
      ["?", "these keys"],
    ],
  },

  apiKey: {
    title: "API key",
    hint: "This service asks for a key. It stays in this tab's memory and is gone when the tab is closed or loaded anew.",
    label: "Key",
    refused: "The service did not take this key.",
  },

  train: {
    make: "Make a model of your own",
    makeHint: "From pictures of your camera, scanner or microscope. They stay on this service.",
    drop: "Drop pictures, folders or zips here",
    choose: "Choose pictures",
    folder: "Choose a folder",
    clear: "Take all out",
    chosen: (pictures, zips, size) =>
      [pictures && `${pictures} ${pictures === 1 ? "picture" : "pictures"}`, zips && `${zips} ${zips === 1 ? "zip" : "zips"}`]
        .filter(Boolean)
        .join(" and ") + `, ${bytes(size)}`,
    nothing: "Nothing chosen yet",
    pairs: (count) => (count ? `${count} ${count === 1 ? "pair" : "pairs"} by their names` : "No pairs by their names yet: see the rule above."),
    method: "What are they?",
    methods: {
      noisy: ["Noisy pictures", "Nothing else needed: ten or more, taken as you always do."],
      pairs: ["Pairs", "Two shots of each scene, x_1.png with x_2.png, or two folders with the same names. A folder named clean holds clean ones."],
      clean: ["Clean pictures", "Noise is put on them."],
    },
    name: "Name",
    nameHint: "small letters, digits, . _ -",
    namePlaceholder: "my-camera",
    parent: "Start from",
    standard: (name) => (name ? `The default, ${name}` : "The default"),
    scratch: "Nothing: from scratch",
    minutes: "Minutes",
    activate: "Use it at once if it is better",
    more: "Kind of noise",
    noise: "Noise",
    noises: { gaussian: "White (Gaussian)", camera: "A camera's", mixed: "Both" },
    sigmaMin: "Least σ",
    sigmaMax: "Most σ",
    start: "Start training",
    sending: (percent) => `Sending, ${percent} %`,
    checking: "Looking through the pictures",
    jobs: "Trainings",
    noJobs: "None yet.",
    more20: "Older ones",
    statuses: {
      queued: "waiting for its turn",
      running: "training",
      cancelling: "stopping",
      cancelled: "cancelled",
      done: "done",
      failed: "failed",
    },
    accepted: (count) => `${count} ${count === 1 ? "picture" : "pictures"} accepted`,
    back: "All trainings",
    left: (seconds) => `about ${duration(seconds)} left`,
    trained: (seconds) => `${duration(seconds)} trained`,
    lost: "The connection is lost; it comes back by itself.",
    curve: "Loss and quality while it learns",
    loss: "loss",
    quality: "quality",
    step: (step) => `Step ${step.toLocaleString()}`,
    sample: "The same patch",
    panels: { before: "As it came", parent: "By the parent", now: "By the new model" },
    noSample: "The first look comes with the first measurement.",
    log: "Log",
    cancel: "Cancel",
    resume: "Go on",
    remove: "Delete",
    sure: "Delete for good?",
    use: "Use this model",
    used: (name) => `${name} is in use`,
    undo: (name) => `Back to ${name}`,
    compare: "Compare on a picture of mine",
    comparing: "Denoising with both…",
    outcome: { before: "As it came", parent: "Parent", trained: "New model" },
    better: (gain) => `Better than its parent by ${gain.toFixed(2)} dB`,
    worse: (loss) => `Not better than its parent (${loss.toFixed(2)} dB)`,
    decibels: (value) => `${value.toFixed(2)} dB`,
    facts: { method: "From", parent: "Parent", pictures: "Pictures", created: "Asked for", ended: "Ended", attempt: "Attempt", minutes: "Minutes" },
  },

  models: {
    title: "Models",
    none: "No models here.",
    isDefault: "in use",
    shipped: "came with Clearfold",
    own: "made here",
    use: "Use it",
    download: "Weights",
    remove: "Delete",
    sure: "Delete for good?",
    card: "Card",
    parent: (name) => `from ${name}`,
    job: "its training",
    upload: "Add a weights file",
    uploadHint: "A .safetensors file that Clearfold wrote; its name becomes the model's.",
    changed: (name) => `${name} is in use now`,
    removed: (name) => `${name} is deleted`,
    added: (name) => `${name} is here`,
  },
};
