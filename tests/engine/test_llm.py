"""The offline API: forms of prompts, log-probabilities, several outputs, chat, structured outputs."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM

from headstart import LLM, SamplingParams
from headstart.engine.params import StructuredOutputs
from headstart.errors import HeadstartError, InvalidRequestError


@pytest.fixture(scope="module")
def llm(stories) -> LLM:
    return LLM(stories, dtype="float32")


def test_forms_of_prompts_mean_the_same(llm):
    """A string, its ids, dicts of both, and lists of them."""
    greedy = SamplingParams(max_tokens=8, temperature=0)
    ids = llm.tokenizer.encode("Once upon a time")
    forms = ["Once upon a time", {"prompt": "Once upon a time"}, {"prompt_token_ids": ids}]
    together = llm.generate(forms, greedy)
    single = [llm.generate(form, greedy)[0] for form in [*forms, ids]]
    assert len({tuple(output.outputs[0].token_ids) for output in together + single}) == 1
    assert all(output.prompt_token_ids == ids and output.finished for output in together)
    each = llm.generate(["Once", "One"], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=3)])
    assert [len(output.outputs[0].token_ids) for output in each] == [2, 3]
    with pytest.raises(InvalidRequestError, match="2 prompts but 1"):
        llm.generate(["a", "b"], [greedy])
    assert llm.generate([], greedy) == []


def test_a_bad_prompt_among_many_runs_none(llm):
    """One refused prompt leaves nothing behind."""
    with pytest.raises(InvalidRequestError):
        llm.generate(["fine", {"prompt_token_ids": [99999]}])
    assert not llm.engine.has_work


def test_logprobs_are_the_models(llm, stories):
    """Log-probabilities of prompt and output tokens, ranks and alternatives, equal Transformers'."""
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=1, logprobs=3, prompt_logprobs=2)
    out = llm.generate("Once upon a time, there was a bird", params)[0]
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    tokens = out.prompt_token_ids + out.outputs[0].token_ids
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([tokens])).logits[0], -1)
    assert out.prompt_logprobs[0] is None
    entries = [*out.prompt_logprobs[1:], *out.outputs[0].logprobs]
    for place, (token, entry) in enumerate(zip(tokens[1:], entries, strict=True)):
        row = logprobs[place]
        assert entry[token].logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert entry[token].rank == (row > row[token]).sum().item() + 1
        for other, rank in zip(row.topk(2).indices.tolist(), (1, 2), strict=True):
            assert entry[other].rank == rank and entry[other].logprob == pytest.approx(row[other].item(), abs=1e-4)
    total = sum(entry[t].logprob for t, entry in zip(out.outputs[0].token_ids, out.outputs[0].logprobs, strict=True))
    assert out.outputs[0].cumulative_logprob == pytest.approx(total)


def test_best_of_returns_the_likeliest(llm):
    """Of best_of outputs the n with the highest mean log-probability come back, best first."""
    ask = {"max_tokens": 20, "temperature": 1.0, "seed": 5, "logprobs": 0}
    every = llm.generate("One day", SamplingParams(n=6, **ask))[0].outputs
    best = llm.generate("One day", SamplingParams(n=2, best_of=6, **ask))[0].outputs
    ranked = sorted(every, key=lambda o: o.cumulative_logprob / len(o.token_ids), reverse=True)
    assert [o.token_ids for o in best] == [o.token_ids for o in ranked[:2]]
    assert [o.index for o in best] == [0, 1]


def test_stops(llm):
    """Stop strings, stop ids, the end of sequence, and the length each end the output with their reason."""
    greedy = {"temperature": 0, "max_tokens": 120}
    plain = llm.generate("Once upon a time", SamplingParams(**greedy))[0].outputs[0]
    assert plain.finish_reason == "length" and len(plain.token_ids) == 120
    stopped = llm.generate("Once upon a time", SamplingParams(stop=["park", "zzz"], **greedy))[0].outputs[0]
    assert stopped.text == plain.text[: plain.text.index("park")]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", "park")
    kept = SamplingParams(stop="park", include_stop_str_in_output=True, **greedy)
    assert llm.generate("Once upon a time", kept)[0].outputs[0].text == stopped.text + "park"
    token = plain.token_ids[10]
    by_id = llm.generate("Once upon a time", SamplingParams(stop_token_ids=[token], **greedy))[0].outputs[0]
    assert by_id.token_ids == plain.token_ids[: plain.token_ids.index(token) + 1]
    assert (by_id.finish_reason, by_id.stop_reason) == ("stop", token)
    likes_to_end = {"logit_bias": {2: 100.0}, "temperature": 0, "max_tokens": 9}
    ended = llm.generate("Once", SamplingParams(**likes_to_end))[0].outputs[0]
    assert (ended.token_ids, ended.text, ended.finish_reason) == ([2], "", "stop")
    late = llm.generate("Once", SamplingParams(min_tokens=4, **likes_to_end))[0].outputs[0]
    assert len(late.token_ids) == 5 and late.finish_reason == "stop"
    endless = llm.generate("Once", SamplingParams(ignore_eos=True, **likes_to_end))[0].outputs[0]
    assert endless.finish_reason == "length" and len(endless.token_ids) == 9


def test_structured_outputs_follow_their_schema(llm):
    """Hot sampling under a schema gives JSON of that schema, in a batch with free requests."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    bound = SamplingParams(max_tokens=150, temperature=1.3, seed=3, structured_outputs=StructuredOutputs(json=schema))
    word = SamplingParams(max_tokens=20, temperature=1.3, seed=4, structured_outputs=StructuredOutputs(regex="(ab)+c"))
    free = SamplingParams(max_tokens=20, temperature=0)
    outputs = llm.generate(["Once"] * 3, [bound, word, free])
    first = outputs[0].outputs[0]
    assert first.finish_reason == "stop"
    value = json.loads(first.text)
    assert set(value) == {"name", "age"} and isinstance(value["age"], int) and len(value["name"]) <= 8
    assert outputs[2].outputs[0].text == llm.generate("Once", free)[0].outputs[0].text


def test_chat_uses_the_template(llm):
    """Messages become the prompt that the template makes of them."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    greedy = SamplingParams(max_tokens=6, temperature=0)
    out = llm.chat([{"role": "user", "content": "Hi"}], greedy, chat_template=template)[0]
    want = llm.tokenizer.encode("user: Hi\nassistant:", add_special_tokens=False)
    assert out.prompt_token_ids == want


def test_interrupted_generation_leaves_nothing(llm):
    """A stream that is closed half way frees its pages."""
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=50, temperature=0))
    next(stream)
    stream.close()
    assert not llm.engine.has_work and llm.engine.store.num_leased == 0
    llm.engine.store.check()


def test_streams_and_batches_do_not_take_each_others_outputs(llm):
    """Two open streams and a batch in between each get their own text, whole."""
    greedy = SamplingParams(max_tokens=30, temperature=0)
    want = [llm.generate(prompt, greedy)[0].outputs[0].text for prompt in ("Once upon", "Lily and Tom", "One day")]
    first, second = llm.stream("Once upon", greedy), llm.stream("Lily and Tom", greedy)
    texts = [next(first).outputs[0].text, next(second).outputs[0].text]
    assert llm.generate("One day", greedy)[0].outputs[0].text == want[2]
    for index, stream in enumerate((first, second)):
        texts[index] += "".join(output.outputs[0].text for output in stream)
    assert texts == want[:2]


def test_a_complete_grammar_ends_the_output(llm):
    """Neither min_tokens nor ignore_eos makes an output go on after its grammar is complete."""
    for extra in ({"min_tokens": 60}, {"ignore_eos": True}, {"min_tokens": 60, "temperature": 0.0}):
        params = SamplingParams(max_tokens=100, structured_outputs=StructuredOutputs(regex="abc"), **extra)
        output = llm.generate("Once", params)[0].outputs[0]
        assert (output.text, output.finish_reason) == ("abc", "stop")


def test_a_methods_budget_holds_unless_the_user_names_one(stories):
    """`sarathi-serve:chunk=2048` widens the step of a CPU; an explicit budget still bounds it."""
    assert LLM(stories, use="sarathi-serve:chunk=2048").engine.planner.max_num_batched_tokens == 2048
    named = LLM(stories, use="sarathi-serve:chunk=2048", max_num_batched_tokens=64)
    assert named.engine.planner.max_num_batched_tokens == 64


def test_what_would_break_a_draw_ends_in_a_token(llm):
    """Forbidding every token, and penalties at their bounds, still give tokens; the engine goes on."""
    every = list(range(llm.engine.vocab_size))
    for extra in ({"temperature": 0.0}, {"temperature": 1e-5}, {"top_p": 0.9}, {"logprobs": 1}):
        for wild in (
            {"min_tokens": 5, "stop_token_ids": every},
            {"repetition_penalty": 0.01},
            {"repetition_penalty": 100.0},
        ):
            output = llm.generate("Once upon a time", SamplingParams(max_tokens=12, **(extra | wild)))[0].outputs[0]
            assert output.token_ids
    bound = StructuredOutputs(regex="a{5}")
    letters = [token for token in every if set(llm.tokenizer.decode([token]).strip()) == {"a"}]
    params = SamplingParams(max_tokens=20, min_tokens=6, stop_token_ids=letters, structured_outputs=bound)
    assert llm.generate("Once", params)[0].outputs[0].text == "aaaaa"


def test_threads_take_turns(llm):
    """Two threads that call one LLM get their own answers."""
    greedy = SamplingParams(max_tokens=30, temperature=0)
    prompts = ["Once upon", "Lily and Tom", "One day", "The big dog"]
    want = [llm.generate(prompt, greedy)[0].outputs[0].text for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = pool.map(lambda prompt: llm.generate(prompt, greedy)[0].outputs[0].text, prompts)
            assert list(got) == want
    llm.engine.store.check()


def test_wrong_types_get_a_sentence(llm):
    """What is no prompt, no parameters and no setting is refused by name."""
    for prompts, params, sentence in [
        (None, None, "NoneType"),
        (5, None, "int"),
        (["a"], {"max_tokens": 3}, "SamplingParams, not dict"),
        ("a\udcffb", None, "not valid Unicode"),
    ]:
        with pytest.raises(InvalidRequestError, match=sentence):
            llm.generate(prompts, params)
    with pytest.raises(HeadstartError, match="no setting 'max_seqs'; did you mean 'max_num_seqs'"):
        LLM(max_seqs=1)
