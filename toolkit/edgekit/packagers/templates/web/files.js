// The artifact's files: fetched in parts, each compared with its sha256 before it is kept, so that a load that was broken off goes on where it was.

const CACHE = "edgekit-model";

export async function openFiles(folder, progress) {
  const list = await readList(folder);
  const cache = await openCache();
  const parts = list.files.flatMap((file) => file.parts);
  const total = parts.reduce((sum, part) => sum + part.bytes, 0);
  let done = 0;
  const held = new Map();
  for (const file of list.files) {
    const whole = room(file.bytes);
    let start = 0;
    for (const part of file.parts) {
      whole.set(await readPart(cache, folder + part.path, part), start);
      start += part.bytes;
      done += part.bytes;
      progress(done, total);
    }
    held.set(file.path, whole);
  }
  await forget(cache, new Set(parts.map((part) => key(part))));
  return held;
}

// Chrome makes no ArrayBuffer of more than 2,145,386,496 bytes, but memory of a WebAssembly of up to 4 GiB.
export function room(bytes) {
  try {
    return new Uint8Array(bytes);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const pages = Math.ceil(bytes / 65536);
    return new Uint8Array(new WebAssembly.Memory({ initial: pages, maximum: pages }).buffer, 0, bytes);
  }
}

// By its digest: a new model keeps the parts that did not change.
const key = (part) => new URL(`model-part/${part.sha256}`, self.location.href).href;

async function openCache() {
  if (!("caches" in self) || !self.crypto?.subtle) {
    throw new Error("this browser keeps no files for this page; open it by https or at localhost");
  }
  await navigator.storage?.persist?.();
  return caches.open(CACHE);
}

async function readList(folder) {
  const name = `${folder}files.json`;
  const cache = await openCache();
  const response = await fetch(name, { cache: "no-cache" }).catch(() => null);
  if (response?.ok) {
    await cache.put(name, response.clone());
    return response.json();
  }
  const kept = await cache.match(name);
  if (!kept) throw new Error(`${name} cannot be loaded, and none is kept from an earlier visit`);
  return kept.json();
}

async function readPart(cache, path, part) {
  const kept = await cache.match(key(part));
  if (kept) {
    const content = await kept.arrayBuffer();
    if (await matches(content, part)) return new Uint8Array(content);
    await cache.delete(key(part));
  }
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path} cannot be loaded: HTTP ${response.status}`);
  const content = await response.arrayBuffer();
  if (!(await matches(content, part))) throw new Error(`${path} is not what was packaged: its sha256 differs; copy the package again`);
  await cache.put(key(part), new Response(content));
  return new Uint8Array(content);
}

async function matches(content, part) {
  if (content.byteLength !== part.bytes) return false;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === part.sha256;
}

async function forget(cache, wanted) {
  for (const request of await cache.keys()) {
    if (request.url.includes("/model-part/") && !wanted.has(request.url)) await cache.delete(request);
  }
}
