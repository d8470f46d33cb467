// The artifact on ONNX Runtime: greedy answers, token for token those of edgekit's own runtime.

import * as ort from "./vendor/engine.js";
import { Template } from "./vendor/jinja.js";
import { Tokenizer } from "./vendor/tokenizers.js";

ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
// More than one thread needs a page that is isolated from others, see README.md.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;

const read = (files, name) => {
  if (!files.has(name)) throw new Error(`the artifact has no ${name}; package it again`);
  return new TextDecoder().decode(files.get(name));
};

export class Model {
  static async open(files) {
    const manifest = JSON.parse(read(files, "edgekit.json"));
    const words = new Words(manifest, files);
    words.check(manifest.conformance);
    const provider = manifest.engine.details.provider === "webgpu" ? "webgpu" : "wasm";
    if (provider === "webgpu" && !navigator.gpu) throw new Error("this model runs on WebGPU, which this browser does not have");
    const external = [...files.keys()].filter((name) => name.endsWith(".data")).map((path) => ({ path, data: files.get(path) }));
    const session = await ort.InferenceSession.create(files.get("model.onnx"), {
      executionProviders: [provider],
      externalData: external,
      enableMemPattern: false,
    });
    files.clear();
    return new Model(manifest, words, session, provider);
  }

  constructor(manifest, words, session, provider) {
    this.manifest = manifest;
    this.words = words;
    this.session = session;
    const threads = ort.env.wasm.numThreads;
    this.where = provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
    this.past = null;
    this.position = 0;
  }

  // Calls step(text so far) after each token; it resolves to false to end the answer.
  async chat(messages, step) {
    const prompt = this.words.encode(this.words.render(messages));
    const limit = this.manifest.context.length;
    if (prompt.length >= limit) throw new Error(`the conversation has ${prompt.length} tokens, the model holds ${limit}; begin a new one`);
    const all = [...prompt];
    const tokens = [];
    this.forget();
    let next = await this.forward(all);
    let reason = "length";
    for (;;) {
      if (this.manifest.tokens.stop.includes(next)) { reason = "stop"; break; }
      all.push(next);
      tokens.push(next);
      if (!(await step(this.words.decode(tokens)))) { reason = "you"; break; }
      if (all.length >= limit) break;
      next = await this.forward(this.crosses(all.length) ? this.again(all) : [next]);
    }
    this.forget();
    return { tokens, text: this.words.decode(tokens), reason };
  }

  // LongRoPE: beyond its switch other factors hold, for the whole sequence, so that it is computed anew there.
  crosses(length) {
    const at = this.manifest.context.rope_switch;
    return at !== null && this.position <= at && length > at;
  }

  again(all) {
    this.forget();
    return all;
  }

  forget() {
    for (const tensor of Object.values(this.past ?? {})) tensor.dispose();
    this.past = null;
    this.position = 0;
  }

  // The likeliest token after these, which come after those of earlier calls.
  async forward(tokens) {
    const length = this.position + tokens.length;
    const past = this.past ?? this.empty();
    const whole = (count, make) => new ort.Tensor("int64", BigInt64Array.from({ length: count }, make), [1, count]);
    const feeds = { input_ids: whole(tokens.length, (_, i) => BigInt(tokens[i])), attention_mask: whole(length, () => 1n), ...past };
    const got = await this.session.run(feeds);
    for (const tensor of Object.values(past)) tensor.dispose();
    this.past = {};
    for (const [name, tensor] of Object.entries(got)) {
      if (name.startsWith("present.")) this.past[name.replace("present.", "past_key_values.")] = tensor;
    }
    this.position = length;
    return largest(await got.logits.getData());
  }

  empty() {
    const past = {};
    for (const { name, type, shape } of this.session.inputMetadata) {
      if (!name.startsWith("past_key_values.")) continue;
      const Numbers = { float32: Float32Array, float16: Uint16Array, int8: Int8Array }[type];
      past[name] = new ort.Tensor(type, new Numbers(0), [1, shape[1], 0, shape[3]]);
    }
    return past;
  }
}

function largest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i += 1) if (logits[i] > logits[best]) best = i;
  return best;
}

class Words {
  constructor(manifest, files) {
    const config = JSON.parse(read(files, "tokenizer_config.json"));
    this.tokenizer = new Tokenizer(JSON.parse(read(files, "tokenizer.json")), config);
    this.template = new Template(read(files, manifest.chat_template));
    const text = (token) => (typeof token === "string" ? token : (token?.content ?? ""));
    this.special = Object.fromEntries(["bos_token", "eos_token", "unk_token", "pad_token"].map((name) => [name, text(config[name])]));
  }

  encode(text) {
    return text ? this.tokenizer.encode(text, { add_special_tokens: false }).ids : [];
  }

  decode(tokens) {
    return tokens.length ? this.tokenizer.decode(tokens, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
  }

  render(messages) {
    return this.template.render({ messages, add_generation_prompt: true, ...this.special });
  }

  // JavaScript's tokenizer and template engine are others than those that the model was built with: what they make of the
  // texts in the manifest has to be the same, or the model would be asked something else without a word.
  check({ encode, chat }) {
    for (const { text, ids } of encode) {
      if (String(this.encode(text)) !== String(ids)) throw new Error(`this browser's tokenizer reads ${JSON.stringify(text)} otherwise than the model's own`);
    }
    for (const { messages, rendered } of chat) {
      if (this.render(messages) !== rendered) throw new Error(`the chat template gives another text here for ${JSON.stringify(messages)}`);
    }
  }
}
