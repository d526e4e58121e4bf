// The thread of its own in which pixels are looked at.
import { doors } from "./pixels.js";

onmessage = async ({ data: { call, name, given } }) => {
  try {
    const [value, transfer = []] = await doors[name](given);
    postMessage({ call, value }, transfer);
  } catch (error) {
    postMessage({ call, error: String(error?.message ?? error) });
  }
};
