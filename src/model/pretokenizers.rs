//! The rules that cut text into the words inside which merges happen, by the names of `tokenizer.ggml.pre` (llama.cpp's
//! `llama-vocab.cpp` lists them; the patterns are those of the models' own `tokenizer.json`). Data only: `text` compiles and runs them.
//! Patterns have no look-around, so that a linear engine runs them: `\s+(?!\S)|\s+` becomes [`Cut::Words`].

use std::borrow::Cow;

/// One step of cutting; the next one works inside the pieces of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Each match is a piece, and so is what lies between two matches.
    Isolate(Cow<'static, str>),
    /// The same, but white space that matched `\s+` gives back its last character if text follows (`\s+(?!\S)|\s+`), unless
    /// that character ends a line and lines are matched apart (`\s*[\r\n]+` comes first).
    Words {
        /// The pattern with `\s+` as its last alternative.
        pattern: Cow<'static, str>,
        /// Whether line ends are matched by an alternative of their own.
        lines_apart: bool,
    },
    /// A match ends a piece.
    EndAt(Cow<'static, str>),
    /// A match begins a piece.
    BeginAt(Cow<'static, str>),
}

/// A named rule with what llama.cpp's loader sets where a file does not say.
#[derive(Debug, Clone)]
pub struct PreTokenizer {
    /// The steps, in order.
    pub cuts: Vec<Cut>,
    /// A word that is itself a token is not merged.
    pub ignore_merges: bool,
    /// Prompts begin with BOS.
    pub add_bos: bool,
}

/// GPT-2's words (openai/gpt-2, `encoder.py`).
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";

/// English suffixes in both cases, as llama.cpp writes `(?i:'s|…)`.
macro_rules! suffix {
    () => {
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}
/// What most rules end with: signs, line ends, white space.
macro_rules! rest {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    };
}
/// Words that tell upper from lower case (o200k, tekken).
macro_rules! cased {
    ($suffix:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix
        )
    };
}

const LLAMA3: &str = concat!(suffix!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", rest!());
const QWEN2: &str = concat!(suffix!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", rest!());
const QWEN35: &str = concat!(
    suffix!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);
const GPT4O: &str = concat!(
    cased!(concat!(suffix!(), "?")),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
);
const TEKKEN: &str = concat!(cased!(""), r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+");
const YOUTU: &str =
    concat!(cased!(concat!(suffix!(), "?")), r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+");
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+"##;
const BAILING: &str = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+";
const SEED_CODER: &str =
    concat!(suffix!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+");
const UFAKZEKA: &str = concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", rest!());
const EXAONE_MOE: &str = concat!(
    suffix!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+"
);
const MINICPM5: &str = concat!(suffix!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+", rest!());
const BLOOM: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";
const CJK_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const CJK_HANGUL: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";
/// Letters of scripts with cases, as DeepSeek's `tokenizer.json` lists them.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_SIGNS: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";

/// All names, class by class.
const CLASSES: &[(&[&str], Class)] = &[
    (
        &[
            "smollm",
            "refact",
            "starcoder",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        Class::Digits,
    ),
    (
        &[
            "gpt-2",
            "phi-2",
            "olmo",
            "mpt",
            "exaone4",
            "jais",
            "trillion",
            "granite-docling",
            "modern-bert",
            "mellum",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
        ],
        Class::Gpt2,
    ),
    (&["default"], Class::Default),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        Class::Llama3,
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], Class::Dbrx),
    (&["glm4", "glm5"], Class::Glm4),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "grok-2",
            "solar-open",
        ],
        Class::Qwen2,
    ),
    (&["qwen35"], Class::Qwen35),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], Class::Gpt4o),
    (&["tekken"], Class::Tekken),
    (&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], Class::Deepseek3),
    (&["deepseek-llm"], Class::DeepseekLlm),
    (&["deepseek-coder"], Class::DeepseekCoder),
    (&["falcon"], Class::Falcon),
    (&["bloom", "poro-chat", "gpt3-finnish"], Class::Bloom),
    (&["viking"], Class::Viking),
    (&["spark2_5"], Class::Spark),
    (&["youtu"], Class::Youtu),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], Class::Bailing),
    (&["seed-coder"], Class::SeedCoder),
    (&["ufakzeka"], Class::Ufakzeka),
    (&["exaone-moe"], Class::ExaoneMoe),
    (&["minicpm5"], Class::Minicpm5),
    (&["chameleon"], Class::Chameleon),
    (&["laguna"], Class::Laguna),
];

#[derive(Clone, Copy)]
enum Class {
    Digits,
    Gpt2,
    Default,
    Llama3,
    Dbrx,
    Glm4,
    Qwen2,
    Qwen35,
    Gpt4o,
    Tekken,
    Deepseek3,
    DeepseekLlm,
    DeepseekCoder,
    Falcon,
    Bloom,
    Viking,
    Spark,
    Youtu,
    Bailing,
    SeedCoder,
    Ufakzeka,
    ExaoneMoe,
    Minicpm5,
    Chameleon,
    Laguna,
}

impl PreTokenizer {
    /// The rule called `name`; `None` if it is unknown.
    pub fn named(name: &str) -> Option<PreTokenizer> {
        let (_, class) = CLASSES.iter().find(|(names, _)| names.contains(&name))?;
        let isolate = |pattern: &'static str| Cut::Isolate(pattern.into());
        let gpt2 = || Cut::Words { pattern: GPT2.into(), lines_apart: false };
        let words =
            |pattern: &'static str| Cut::Words { pattern: pattern.into(), lines_apart: true };
        let digits = || isolate(r"\p{N}");
        let threes = || isolate(r"\p{N}{1,3}");
        let cuts = match class {
            Class::Digits => vec![digits(), gpt2()],
            Class::Gpt2 => vec![gpt2()],
            Class::Default => {
                vec![
                    isolate(r"[\p{P}\$\+<=>\^~\|]+"),
                    gpt2(),
                    isolate(r"\p{N}+"),
                    isolate("[0-9][0-9][0-9]"),
                ]
            }
            Class::Llama3 | Class::Dbrx | Class::Glm4 => vec![words(LLAMA3)],
            Class::Qwen2 => vec![words(QWEN2)],
            Class::Qwen35 => vec![words(QWEN35)],
            Class::Gpt4o => vec![words(GPT4O)],
            Class::Tekken => vec![words(TEKKEN)],
            Class::Deepseek3 => vec![threes(), isolate(CJK_KANA), words(DEEPSEEK3)],
            Class::DeepseekLlm => vec![
                isolate(r"[\r\n]"),
                isolate(DEEPSEEK_LETTERS),
                isolate(DEEPSEEK_SIGNS),
                isolate(r"\s+$"),
                isolate(CJK_HANGUL),
                isolate(r"\p{N}+"),
            ],
            Class::DeepseekCoder => {
                vec![
                    isolate(r"[\r\n]"),
                    isolate(r"\s?\p{L}+"),
                    isolate(r"\s?\p{P}+"),
                    isolate(CJK_HANGUL),
                    digits(),
                ]
            }
            Class::Falcon => {
                vec![isolate(r"[\p{P}\$\+<=>\^~\|`]+"), gpt2(), isolate("[0-9][0-9][0-9]")]
            }
            Class::Bloom => vec![isolate(BLOOM)],
            Class::Viking => vec![isolate(BLOOM), digits()],
            // A line end is matched alone, and white space may hold others.
            Class::Spark => {
                vec![
                    threes(),
                    isolate(CJK_KANA),
                    Cut::Words { pattern: SPARK.into(), lines_apart: false },
                    digits(),
                ]
            }
            Class::Youtu => {
                vec![
                    isolate(
                        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
                    ),
                    words(YOUTU),
                ]
            }
            Class::Bailing => vec![words(BAILING)],
            Class::SeedCoder => vec![words(SEED_CODER)],
            Class::Ufakzeka => vec![words(UFAKZEKA)],
            Class::ExaoneMoe => vec![words(EXAONE_MOE)],
            Class::Minicpm5 => vec![threes(), words(MINICPM5)],
            Class::Chameleon => vec![
                isolate("<sentinel:[0-9]+>"),
                isolate("(?:IMGIMG)(?:A|B|C|D|E|F|G|H|I){1,4}Z"),
                isolate("[\t\n]|    |  "),
                digits(),
                isolate(r"[\p{P}!-/:-@\[-`{-~]"),
                gpt2(),
            ],
            Class::Laguna => vec![isolate("[^\n]+|\n+"), words(QWEN2)],
        };
        let ignore_merges = matches!(
            class,
            Class::Llama3 | Class::Glm4 | Class::Tekken | Class::Youtu | Class::Minicpm5
        );
        let add_bos = matches!(class, Class::Llama3 | Class::Tekken | Class::Chameleon);
        Some(PreTokenizer { cuts, ignore_merges, add_bos })
    }

    /// All names that [`PreTokenizer::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CLASSES.iter().flat_map(|(names, _)| names.iter().copied())
    }
}
