#!/usr/bin/env python3
"""Tokenizer cases from the reference library (Hugging Face `tokenizers`).

    python3 tokenizer_random.py --out tests/golden/tokenizers                  # the committed fixture
    python3 tokenizer_random.py --out DIR --seed 7 --texts 500 [MODEL_DIR ...]  # random, elsewhere
    TANDEM_TOKENIZER_CASES=DIR build/tests/tokenizer_golden_test

Defines tokenizers of all the shapes that popular models have, with small vocabularies trained on the
text below, and writes for each NAME.json (the tokenizer.json) and NAME.cases. A model directory's own
tokenizer.json is taken as it is. A line of NAME.cases has five fields, separated by tabs:

    text in hex, or "-": the ids are random, not those of a text
    ids without special tokens
    ids with special tokens
    decoded text in hex, special tokens kept (of the second field)
    decoded text in hex, special tokens skipped

Needs `tokenizers` (made with 0.23); the tests need only the fixture.
"""
import argparse
import collections
import json
import os
import random
import unicodedata

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TRAINING = """It was a bright cold day in the harbour, and the clocks hadn't struck; they'd stopped.
"We'll see," said the pilot, "I'm sure it isn't 12 or 345 or 6789 miles." HELLO WORLD, Hello World, hello!
for (int i = 0; i < 1024; i++) { printf("%d\\n", i); }    /* four blanks */  return x == y ? a[i] : b->c;
Der Käse schmeckt süß; l'été, c'est où? Ça va. El niño comió en el jardín. Привет, мир! Γειά σου κόσμε.
你好,世界。今天天气很好。東京タワーとひらがなカタカナ。안녕하세요 세계. नमस्ते दुनिया। مرحبا بالعالم 😀🚀👩‍💻
the the the there their then and and that this with which while what when where whose who
"""

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
          r"|\s*[\r\n]|\s+(?!\S)|\s+")
CL100K_POSSESSIVE = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++"
                     r"[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m"
         r"|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t"
         r"|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK3 = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
             r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
NOT_HAN = r"&&[^\p{Han}]"
KIMI = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}" + NOT_HAN + r"]*[\p{Ll}\p{Lm}\p{Lo}\p{M}"
        + NOT_HAN + r"]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
        + NOT_HAN + r"]+[\p{Ll}\p{Lm}\p{Lo}\p{M}" + NOT_HAN + r"]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
UNDER = "▁"


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def normalizers(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def decoders(*steps):
    return {"type": "Sequence", "decoders": list(steps)}


def replace(what, by, kind="String"):
    return {"type": "Replace", "pattern": {kind: what}, "content": by}


def added(content, special=True, **more):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special, **more}


def template(before, after=()):
    def special(token):
        return {"SpecialToken": {"id": token, "type_id": 0}}
    return {"type": "TemplateProcessing",
            "single": [special(t) for t in before] + [{"Sequence": {"id": "A", "type_id": 0}}]
            + [special(t) for t in after],
            "pair": [], "special_tokens": list(before) + list(after)}


LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
CHAT = [added("<|endoftext|>"), added("<|im_start|>"), added("<|im_end|>")]
SPM = [added("<unk>"), added("<s>"), added("</s>")]
PREPEND = {"type": "Prepend", "prepend": UNDER}
METASPACE = {"type": "Metaspace", "replacement": UNDER, "prepend_scheme": "always", "split": True}
FALLBACK = decoders(replace(UNDER, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0})


def byte_level(pre, **more):
    return {"style": "bytes", "pre": pre, "decoder": LEVEL, "added": CHAT, **more}


def sentencepiece(**more):
    return {"style": "spm", "pre": None, "decoder": FALLBACK, "added": SPM, "post": template(["<s>"]),
            "normalizer": normalizers(PREPEND, replace(" ", UNDER)), **more}


SHAPES = {
    "gpt2": byte_level(GPT2, post=dict(LEVEL, trim_offsets=False)),
    "prefix_space": byte_level(dict(GPT2, add_prefix_space=True)),
    "llama3": byte_level(sequence(split(LLAMA3), BYTES), model={"ignore_merges": True}, pairs=True,
                         post={"type": "Sequence", "processors": [LEVEL, template(["<|im_start|>"])]}),
    "qwen2": byte_level(sequence(split(QWEN2), BYTES), normalizer={"type": "NFC"}),
    "cl100k": byte_level(sequence(split(CL100K), BYTES)),
    "cl100k_possessive": byte_level(sequence(split(CL100K_POSSESSIVE, "Removed", True), BYTES)),
    "o200k": byte_level(sequence(split(O200K), BYTES), pairs=True),
    "tekken": byte_level(sequence(split(TEKKEN), BYTES), model={"ignore_merges": True}),
    "deepseek3": byte_level(sequence(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK3),
                                     BYTES), normalizer=normalizers()),
    "deepseek_coder": byte_level(sequence(split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
                                          split("[一-龥ࠀ-一가-퟿]+"),
                                          {"type": "Digits", "individual_digits": True}, BYTES)),
    "deepseek_llm": byte_level(sequence(split("[\r\n]"), split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺͰ-ͳΆΈ-Ίа-яА-Я]+"),
                                        split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
                                        split("[一-龥ࠀ-一가-퟿]+"),
                                        {"type": "Digits", "individual_digits": True}, BYTES)),
    "kimi": byte_level(sequence(split(KIMI), BYTES)),
    "starcoder": byte_level(sequence({"type": "Digits", "individual_digits": True}, GPT2)),
    "falcon": byte_level(sequence({"type": "Punctuation", "behavior": "Contiguous"}, GPT2,
                                  {"type": "Digits", "individual_digits": False},
                                  split("[0-9][0-9][0-9]"))),
    "bloom": byte_level(sequence(split(BLOOM), BYTES)),
    "neox": byte_level(GPT2, normalizer={"type": "NFC"},
                       added=CHAT + [added(" " * n, False, normalized=True) for n in (24, 8, 4, 3, 2)]
                       + [added("|||EMAIL|||", False, normalized=True)]),
    "roberta": byte_level(GPT2, added=[added("<s>"), added("</s>"),
                                       added("<mask>", lstrip=True)],
                          post={"type": "RobertaProcessing", "sep": "</s>", "cls": "<s>",
                                "trim_offsets": True, "add_prefix_space": False}),
    "clip": byte_level(sequence(split(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|"
                                      r"[\p{N}]|[^\s\p{L}\p{N}]+", "Removed", True), BYTES),
                       normalizer=normalizers({"type": "NFC"}, replace(r"\s+", " ", "Regex"),
                                              {"type": "Lowercase"}),
                       model={"end_of_word_suffix": "</w>"}),
    "words": byte_level(sequence({"type": "Whitespace"}, BYTES),
                        added=[added("the", False, single_word=True), added("end", lstrip=True,
                                                                            rstrip=True)]),
    "bert_cut": byte_level(sequence({"type": "BertPreTokenizer"}, BYTES),
                           normalizer=normalizers({"type": "NFD"}, {"type": "StripAccents"},
                                                  {"type": "Strip", "strip_left": True,
                                                   "strip_right": True})),
    "behaviors": byte_level(sequence(split("-", "MergedWithPrevious"), split("e", "MergedWithNext"),
                                     split(r"\d", "Contiguous"),
                                     {"type": "CharDelimiterSplit", "delimiter": "q"},
                                     {"type": "WhitespaceSplit"}, BYTES)),
    "byte_normalizer": byte_level(None, normalizer={"type": "ByteLevel"}),
    "llama2": sentencepiece(),
    "phi3": sentencepiece(added=[added("<unk>"), added("<s>"), added("</s>", False, rstrip=True),
                                 added("<|end|>", rstrip=True)], post=template([])),
    "llama2_normalized": sentencepiece(added=[dict(t, normalized=True) for t in SPM]),
    "llama2_metaspace": sentencepiece(normalizer=None, pre=dict(METASPACE, prepend_scheme="first",
                                                                split=False)),
    "metaspace": sentencepiece(normalizer=None, pre=METASPACE, post=template(["<s>"], ["</s>"]),
                               decoder=METASPACE),
    "metaspace_never": sentencepiece(normalizer={"type": "NFKC"}, decoder=dict(METASPACE,
                                                                             prepend_scheme="never"),
                                     pre=dict(METASPACE, prepend_scheme="never")),
    "gemma": sentencepiece(normalizer=replace(" ", UNDER),
                           pre={"type": "Split", "pattern": {"String": " "},
                                "behavior": "MergedWithPrevious", "invert": False},
                           decoder=decoders(replace(UNDER, " "), {"type": "ByteFallback"},
                                            {"type": "Fuse"}),
                           added=SPM + [added("\n\n", False), added("\n\n\n", False)]),
    "no_fallback": sentencepiece(model={"byte_fallback": False}, normalizer={"type": "NFKD"},
                                 decoder={"type": "BPEDecoder", "suffix": "e"}),
    "fixed_length": sentencepiece(pre={"type": "FixedLength", "length": 3}, decoder=None),
    "strip_two": sentencepiece(decoder=decoders(replace(UNDER, " "), {"type": "Fuse"},
                                                 {"type": "Strip", "content": " ", "start": 2, "stop": 0},
                                                 replace("th", "TH"))),
}


def learn(shape, merges_count):
    """Alphabet and merges from TRAINING, cut as the shape says."""
    spm = shape["style"] == "spm"
    bpe = Tokenizer(models.BPE())
    if spm:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace()
        counts = collections.Counter(TRAINING.replace(" ", UNDER))
        alphabet = sorted(c for c, n in counts.items() if n > 1 and c != "\n")
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=100000, initial_alphabet=alphabet, show_progress=False,
                                  limit_alphabet=len(alphabet), min_frequency=2)
    bpe.train_from_iterator(TRAINING.splitlines(), trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]][:merges_count]
    made = {a + b for a, b in merges}
    singles = sorted(t for t in model["vocab"] if len(t) == 1)
    return singles, merges, [a + b for a, b in merges if a + b in made]


def build(shape, merges_count):
    singles, merges, joined = learn(shape, merges_count)
    spm = shape["style"] == "spm"
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>" if spm else None,
             "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": spm,
             "byte_fallback": spm, "ignore_merges": False}
    model.update(shape.get("model", {}))
    tokens = [t["content"] for t in shape["added"]] if spm else []
    if spm:
        tokens += ["<0x%02X>" % b for b in range(256)]
    tokens += singles
    suffix = model["end_of_word_suffix"]
    if suffix:
        tokens += [t + suffix for t in singles]
        merges = merges + [[a, b + suffix] for a, b in merges]
        joined += [a + b for a, b in merges if a + b not in joined]
    tokens += joined
    vocab = {}
    for t in tokens:
        vocab.setdefault(t, len(vocab))
    model["vocab"] = vocab
    model["merges"] = merges if shape.get("pairs") else ["%s %s" % (a, b) for a, b in merges]
    ids = dict(vocab)
    listed = []
    for t in shape["added"]:
        ids.setdefault(t["content"], len(ids))
        listed.append(dict(id=ids[t["content"]], **t))
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": sorted(listed, key=lambda t: t["id"]),
            "normalizer": shape.get("normalizer"), "pre_tokenizer": shape["pre"],
            "post_processor": fill_ids(shape.get("post"), ids), "decoder": shape["decoder"],
            "model": model}


def fill_ids(post, ids):
    """Names of special tokens become what the file has in their place."""
    if post is None:
        return None
    post = dict(post)
    if post["type"] == "Sequence":
        post["processors"] = [fill_ids(p, ids) for p in post["processors"]]
    if post["type"] == "TemplateProcessing":
        post["special_tokens"] = {t: {"id": t, "ids": [ids[t]], "tokens": [t]}
                                  for t in post["special_tokens"]}
    for key in ("cls", "sep"):
        if key in post:
            post[key] = [post[key], ids[post[key]]]
    return post


EDGES = ["", " ", "  ", "\n", " \n", "a", " a", "a ", "\t\t a\r\n\r\n b", "I'LL he's I'Ve 'ſ x'D", "12345678 ٣٤ ²½",
         "e\u0301\u0316 \u1e0b\u0323 가 한 ﬁ Å", "a\u0085b\u00a0c\u180ed\u200be\u2028f\u3000g\ufeff",
         "、。你好 ー々〇", "\0a\0", "👩‍💻👍🏽🇩🇪\u200d", "AAbbCC dDeE ǅx ʰʲ", "the end the-end theend  end  x", "{a}[b](c)|d|~$+<=>^`",
         "</w>a</w>", "▁▁a ▁b", "Ġa Ċ é ÿ", "<0x41><0xE4>", "İI ıi ẞß ΣΑΣ", "q-e--ee9 99qq -"]


def characters():
    old = unicodedata.ucd_3_2_0
    return [chr(c) for c in range(0x110000)
            if not 0xD800 <= c < 0xE000 and old.category(chr(c)) not in ("Cn", "Co")]


def random_text(rng, alphabet, specials):
    blocks = ["abcdeh tTHE", " \n\t\r  ", "0123456789", ".,!?'-_()[]{}<>/\\|", "éüñçßœ", "你好世界東京",
              "あいアイー", "привет", "नमस्ते", "안녕하", "😀🚀\u200d🏽", "\u0301\u0316\u0308",
              "'s't're've'm'll'd", "\u00a0\u2028\u3000\u0085"]
    words = TRAINING.split()
    out = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.35:
            out.append(rng.choice(words) + rng.choice(["", " ", " ", "  ", "\n"]))
        elif kind < 0.75:
            block = rng.choice(blocks)
            out.append("".join(rng.choice(block) for _ in range(rng.randint(1, 6))))
        elif kind < 0.85 and specials:
            out.append(rng.choice(["", " ", "x"]) + rng.choice(specials) + rng.choice(["", " ", "  x"]))
        else:
            out.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 4))))
    return "".join(out)


def ids_text(ids):
    return " ".join(map(str, ids))


def hex_text(text):
    return text.encode("utf-8", "surrogatepass").hex()


def case(tokenizer, text, ids):
    """Special tokens are taken out by hand: the library leaves those in that a normalizer changes."""
    special = []
    marked = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    if text is not None:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        special = tokenizer.encode(text).ids
    return "\t".join(["-" if text is None else hex_text(text), ids_text(ids), ids_text(special),
                      hex_text(tokenizer.decode(ids, skip_special_tokens=False)),
                      hex_text(tokenizer.decode([i for i in ids if i not in marked],
                                                skip_special_tokens=False))])


def write_cases(path, tokenizer, rng, texts_count, alphabet, specials):
    lines = [case(tokenizer, text, None) for text in EDGES]
    lines += [case(tokenizer, random_text(rng, alphabet, specials), None) for _ in range(texts_count)]
    size = tokenizer.get_vocab_size() + 3
    byte_ids = [i for i in (tokenizer.token_to_id("<0x%02X>" % b) for b in range(256)) if i is not None]
    for n in range(texts_count // 3 + 1):
        ids = [rng.randrange(size) for _ in range(rng.randint(0, 12))]
        if byte_ids and n % 2:
            ids = [rng.choice(byte_ids) if rng.random() < 0.6 else i for i in ids]
        lines.append(case(tokenizer, None, ids))
    with open(path, "w", encoding="ascii") as f:
        f.write("\n".join(lines) + "\n")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", required=True)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--texts", type=int, default=10)
    options.add_argument("--merges", type=int, default=70)
    options.add_argument("models", nargs="*", help="directories with a tokenizer.json")
    o = options.parse_args()
    os.makedirs(o.out, exist_ok=True)
    alphabet = characters()
    files = {name: json.dumps(build(shape, o.merges), ensure_ascii=False, separators=(",", ":"))
             for name, shape in SHAPES.items()}
    for directory in o.models:
        with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as f:
            files["model_" + os.path.basename(directory.rstrip("/"))] = f.read()
    for name, text in files.items():
        rng = random.Random("%d %s" % (o.seed, name))
        tokenizer = Tokenizer.from_str(text)
        specials = [t["content"] for t in json.loads(text)["added_tokens"]]
        with open(os.path.join(o.out, name + ".json"), "w", encoding="utf-8") as f:
            f.write(text + "\n")
        write_cases(os.path.join(o.out, name + ".cases"), tokenizer, rng, o.texts, alphabet, specials)


if __name__ == "__main__":
    main()
