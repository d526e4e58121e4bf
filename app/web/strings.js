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
    standard: (name) => (name ? `Default (${name})` : "Default"),
    saving: "Format and quality",
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
};
