// Every supported call through the Node client of OpenAI; the URL of the server and a key come as arguments.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.HEADSTART_NODE_MODULES}/`);
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: process.argv[3], maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
assert.equal((await client.models.retrieve(model)).id, model);
const messages = [{ role: "user", content: "What is 1 + 2?" }];
const parameters = { type: "object", properties: { a: { enum: [1, 2] } }, required: ["a"], additionalProperties: false };
const asked = { model, temperature: 0, seed: 1, user: "me" };

const whole = await client.completions.create({ ...asked, prompt: "Once", max_tokens: 9, logprobs: 1, n: 2, stop: ["zz"] });
assert.equal(whole.choices.length, 2);
let text = "";
const parts = await client.completions.create({
  ...asked, prompt: "Once", max_tokens: 9, stream: true, stream_options: { include_usage: true },
});
let usage;
for await (const part of parts) {
  text += part.choices[0]?.text ?? "";
  usage = part.usage ?? usage;
}
assert.equal(text, whole.choices[0].text);
assert.equal(usage.prompt_tokens, whole.usage.prompt_tokens);

const chat = await client.chat.completions.create({ ...asked, messages, max_completion_tokens: 9, logprobs: true, top_logprobs: 2 });
const stream = client.chat.completions.stream({ ...asked, messages, max_completion_tokens: 9 });
assert.equal(await stream.finalContent(), chat.choices[0].message.content);
const response_format = { type: "json_schema", json_schema: { name: "x", schema: parameters, strict: true } };
const held = await client.chat.completions.create({ ...asked, messages, max_tokens: 60, response_format });
assert.ok([1, 2].includes(JSON.parse(held.choices[0].message.content).a));

const tools = [{ type: "function", function: { name: "add", parameters, strict: true } }];
const called = { ...asked, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200 };
const call = (await client.chat.completions.create(called)).choices[0].message.tool_calls[0];
const streamed = await client.chat.completions.stream(called).finalMessage();
assert.equal(streamed.tool_calls[0].function.arguments, call.function.arguments);
const turns = [...messages, { role: "assistant", content: null, tool_calls: [call] }, { role: "tool", tool_call_id: call.id, content: "3" }];
assert.equal((await client.chat.completions.create({ ...asked, messages: turns, tools, max_tokens: 5 })).object, "chat.completion");

const response = await client.responses.create({ ...asked, input: "What is 1 + 2?", instructions: "Be brief.", max_output_tokens: 9, seed: undefined });
const events = client.responses.stream({ ...asked, input: "What is 1 + 2?", instructions: "Be brief.", max_output_tokens: 9, seed: undefined });
assert.equal((await events.finalResponse()).output_text, response.output_text);
const flat = [{ type: "function", name: "add", parameters, strict: true }];
const acted = await client.responses.create({ ...asked, input: "1 + 2?", tools: flat, tool_choice: { type: "function", name: "add" }, max_output_tokens: 200 });
assert.equal(acted.output[0].name, "add");

const vectors = await client.embeddings.create({ model, input: ["a", "b"], dimensions: 4 });
assert.equal(vectors.data[1].embedding.length, 4);
await assert.rejects(client.embeddings.create({ model, input: "a", dimensions: 10000 }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ model: "other", messages }), OpenAI.NotFoundError);
console.log("ok");
