// Requests to the service: adds the token if one is needed, and retries while the queue is full.

const TOKEN = "steel-token";
const MAX_RETRIES = 30;

/** An answer other than success, with the service's own explanation. */
export class ServiceError extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }
}

let tokenRequest = null; // one dialog for all requests that wait for the token

function askForToken() {
  tokenRequest ??= new Promise((resolve) => {
    const dialog = document.querySelector("#token-dialog");
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, document.querySelector("#token").value);
      tokenRequest = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return tokenRequest;
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Sends a request and returns the response; throws a ServiceError if it failed. */
export async function request(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const response = await fetch(path, { ...options, headers }).catch(() => {
      throw new ServiceError("Cannot reach the service. Check that it is running, then try again.");
    });
    if (response.ok) return response;
    if (response.status === 401) {
      await askForToken();
    } else if (response.status === 503 && attempt < MAX_RETRIES) {
      // A random delay keeps waiting requests from all retrying at the same moment.
      await sleep(Number(response.headers.get("Retry-After") ?? 1) * (0.5 + Math.random()));
    } else {
      const body = await response.json().catch(() => ({}));
      throw new ServiceError(body.detail ?? `The service answered with status ${response.status}.`, response.status);
    }
  }
}

/** Inspects a file, at other thresholds than the model's if given, and returns the service's answer. */
export async function inspect(file, thresholds = null) {
  const query = new URLSearchParams({ name: file.name });
  if (thresholds) {
    query.set("gate", thresholds.gate);
    for (const label of thresholds.labels) query.append("label", label);
  }
  const response = await request(`v1/inspect?${query}`, { method: "POST", body: file });
  return (await response.json()).images[0];
}

/** Offers a file to the user as a download. */
export function saveFile(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
