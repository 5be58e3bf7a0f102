// Requests to the server that this page came from. Every failure is an Error whose message is a sentence.

const KEY = "unimask-token";
let token = sessionStorage.getItem(KEY) ?? "";
let askForToken = async () => "";

if (location.hash.startsWith("#token=")) {
  token = decodeURIComponent(location.hash.slice(7));
  sessionStorage.setItem(KEY, token);
  history.replaceState(null, "", location.pathname);
}

/** What is called when the server wants a token: it resolves to one. */
export function onTokenWanted(ask) {
  askForToken = ask;
}

export async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is `unimask serve` still running?");
  }
  if (answer.status === 401) {
    token = await askForToken();
    sessionStorage.setItem(KEY, token);
    return request(path, options);
  }
  if (!answer.ok) throw new Error(await sentence(answer));
  return answer;
}

async function sentence(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return `The server answered with an error (${answer.status}). Try again.`;
  }
}

export const json = async (path, options) => (await request(path, options)).json();
export const blob = async (path, options) => (await request(path, options)).blob();

/** The bytes of a deflated array in Base64. */
export async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}
