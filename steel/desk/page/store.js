// Keeps images and unsent verdicts in this browser (IndexedDB), for reloads and for other tabs.

// Two desks below different paths of one host do not share their images.
const NAME = `steel-desk ${location.pathname}`;
const others = new BroadcastChannel(NAME);

let database = null;

function open() {
  database ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("images", { keyPath: "id", autoIncrement: true });
      opening.result.createObjectStore("outbox", { keyPath: "digest" });
    };
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
  return database;
}

async function run(name, mode, work) {
  const transaction = (await open()).transaction(name, mode);
  return new Promise((resolve, reject) => {
    const request = work(transaction.objectStore(name));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

export const list = (name) => run(name, "readonly", (store) => store.getAll());
export const read = (name, key) => run(name, "readonly", (store) => store.get(key));

async function change(name, work, key) {
  const result = await run(name, "readwrite", work);
  others.postMessage({ name, key: key ?? result });
  return result;
}

/** Saves an entry, tells the other tabs, and returns its key. */
export const save = (name, entry) => change(name, (store) => store.put(entry));
export const remove = (name, key) => change(name, (store) => store.delete(key), key);
export const clear = (name) => change(name, (store) => store.clear());

/** Calls back with the store that another tab changes and the key, or no key if the whole store was cleared. */
export const watch = (callback) => { others.onmessage = ({ data }) => callback(data.name, data.key); };

/** Waits until no other tab does this work, and then does it. Browsers have locks only on localhost and with HTTPS. */
export const exclusively = (work) => (navigator.locks ? navigator.locks.request(NAME, work) : work());
