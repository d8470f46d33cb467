// Loads the artifact, checks that this browser reads it as it was built, and answers.

import { Model } from "./model.js";
import { openFiles } from "./files.js";

let model = null;
let stopped = false;

const tell = (kind, more) => postMessage({ kind, ...more });

async function start() {
  const files = await openFiles("artifact/", (done, total) => {
    tell("progress", { text: `loading the model: ${Math.round((100 * done) / total)} %` });
  });
  tell("progress", { text: "starting the model" });
  model = await Model.open(files);
  tell("ready", { text: `ready; ${model.where}` });
}

async function chat(messages) {
  stopped = false;
  const { tokens, text, reason } = await model.chat(messages, async (text) => {
    tell("token", { text });
    await new Promise((resume) => setTimeout(resume)); // so that "stop" is heard
    return !stopped;
  });
  tell("done", { tokens, text, reason });
}

function report(error) {
  tell("error", { text: error instanceof Error ? error.message : String(error) });
}

onmessage = ({ data }) => {
  if (data.kind === "stop") stopped = true;
  else if (data.kind === "chat") chat(data.messages).catch(report);
};

start().catch(report);
