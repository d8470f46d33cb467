// The page: a conversation with the model, which runs in worker.js so that the page stays alive while it computes.

const $ = (id) => document.getElementById(id);
const messages = [];
let answer = null;

if ("serviceWorker" in navigator) {
  navigator.serviceWorker.register("sw.js").then(
    () => navigator.serviceWorker.ready.then(() => { document.body.dataset.offline = "ready"; }),
    (error) => { document.body.dataset.offline = `no: ${error.message}`; },
  );
}

const worker = new Worker("worker.js", { type: "module" });
worker.onerror = (event) => fail(event.message || "the worker could not be started");
worker.onmessage = ({ data }) => {
  if (data.kind === "progress") $("status").textContent = data.text;
  else if (data.kind === "ready") ready(data.text);
  else if (data.kind === "token") answer.textContent = data.text;
  else if (data.kind === "done") done(data);
  else if (data.kind === "error") (answer ? undo : fail)(data.text);
};

function ready(text) {
  $("status").textContent = text;
  document.body.dataset.state = "ready";
  for (const id of ["prompt", "send", "new"]) $(id).disabled = false;
  $("stop").disabled = true;
  $("prompt").focus();
}

function done({ text, tokens, reason }) {
  answer.textContent = text;
  answer.dataset.tokens = JSON.stringify(tokens);
  messages.push({ role: "assistant", content: text });
  answer = null;
  ready(`${tokens.length} tokens, ended by ${reason}`);
}

// What was asked is not answered: it is taken back, and the page goes on.
function undo(text) {
  messages.pop();
  answer.remove();
  answer = null;
  ready(text);
}

function fail(text) {
  document.body.dataset.state = "failed";
  $("status").textContent = text;
}

function say(role, text) {
  const line = document.createElement("p");
  line.className = role;
  line.textContent = text;
  $("talk").append(line);
  return line;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  if (!prompt || $("send").disabled) return;
  document.body.dataset.state = "answering";
  $("prompt").value = "";
  for (const id of ["prompt", "send", "new"]) $(id).disabled = true;
  $("stop").disabled = false;
  messages.push({ role: "user", content: prompt });
  say("user", prompt);
  answer = say("assistant", "");
  worker.postMessage({ kind: "chat", messages });
});

$("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));
$("new").addEventListener("click", () => {
  messages.length = 0;
  $("talk").replaceChildren();
});
