// What the page asks of the service: with the token where there is one, and again where the queue is full.

const TOKEN = "steel-token";
const PATIENCE = 30; // times that a full queue is asked again

/** Why there is no answer, in the service's own sentence. */
export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

let asking = null; // one dialog for all requests that wait for the token

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#token-dialog");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, document.querySelector("#token").value);
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** The service's answer; throws a Refusal where it is none. */
export async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await askForToken();
    } else if (answer.status === 503 && attempt < PATIENCE) {
      // Not all at the same moment again.
      await wait(Number(answer.headers.get("Retry-After") ?? 1) * (0.5 + Math.random()));
    } else {
      const body = await answer.json().catch(() => ({}));
      throw new Refusal(answer.status, body.detail ?? `the service answered ${answer.status}`);
    }
  }
}

/** The decision about a file; at other thresholds where they are given. */
export async function inspect(file, thresholds = null) {
  const query = new URLSearchParams({ name: file.name });
  if (thresholds) {
    query.set("gate", thresholds.gate);
    for (const label of thresholds.labels) query.append("label", label);
  }
  const answer = await ask(`v1/inspect?${query}`, { method: "POST", body: file });
  return (await answer.json()).images[0];
}

/** Hands the user a file. */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
