//! A tokenizer as data, checked in this one place: tokens and their kinds, how merges are found, what is done to text before. In: the
//! arrays of a GGUF file, or what `tokenizer_json` reads. Out: a [`TokenizerSpec`] whose ids, merges and alphabet hold, and the
//! [`Vocabulary`] around it (ends, BOS, template). It does not tokenize.
//! Over 500 lines: two containers make one checked form, and the checks are shared.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use super::ModelError;
use super::gguf::Gguf;
use super::pretokenizers::{Cut, PreTokenizer};
use crate::units::{TokenId, shown};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Longest token text in bytes; real ones stay under 1 KiB.
const MAX_TOKEN: usize = 1 << 16;

/// Most bytes of a chat template; the longest published ones are some 20 KiB.
pub(super) const MAX_TEMPLATE: usize = 1 << 20;

/// What SentencePiece writes for a space.
pub const SPACE: char = '\u{2581}';

/// Texts that end a turn or a text where they are control tokens (llama.cpp's `llama-vocab.cpp`, and the models' own templates).
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endofturn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Marks that are control tokens even where a file calls them something else (llama.cpp does the same), unless merges make them:
/// Qwen2's `</s>` is text.
const ALWAYS_CONTROL: &[&str] = &[
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
];

/// What a token is, as ggml's types say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// Text, made by merges.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Structure of a conversation: no text, and no text becomes it.
    Control,
    /// Found in text as it stands, before words are cut.
    UserDefined,
    /// Never used.
    Unused,
    /// One byte, `<0x00>` to `<0xFF>`.
    Byte,
}

impl TokenKind {
    /// From the numbers of `tokenizer.ggml.token_type`.
    fn from_ggml(number: i64) -> Option<TokenKind> {
        use TokenKind::*;
        Some(match number {
            1 => Normal,
            2 => Unknown,
            3 => Control,
            4 => UserDefined,
            5 => Unused,
            6 => Byte,
            _ => return None,
        })
    }
}

/// One merge: two tokens that stand side by side become one. Its place in the list is its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// The token on the left.
    pub left: TokenId,
    /// The token on the right.
    pub right: TokenId,
    /// What they become.
    pub result: TokenId,
}

/// Which words are looked up whole before they are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// None.
    Never,
    /// All (`ignore_merges`).
    Always,
    /// Those of line feeds alone (gemma4, whose merges have none).
    LineFeeds,
}

/// How a word becomes tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenModel {
    /// Byte-level BPE: symbols are bytes, written in GPT-2's alphabet; the merge of the lowest rank comes first.
    ByteBpe {
        /// By rank.
        merges: Vec<Merge>,
        /// Words that are tokens.
        whole: Whole,
    },
    /// BPE over characters; those without a token become byte tokens or the unknown token.
    TextBpe {
        /// By rank.
        merges: Vec<Merge>,
        /// Words that are tokens.
        whole: Whole,
        /// A run of unknown characters is one unknown token.
        fuse_unknown: bool,
    },
    /// SentencePiece's BPE: of two neighbours whose joined text is a token, those of the highest score are merged first.
    Scores {
        /// By id, finite.
        scores: Vec<f32>,
    },
}

impl Default for TokenModel {
    fn default() -> Self {
        TokenModel::ByteBpe { merges: Vec::new(), whole: Whole::Never }
    }
}

/// A change to text before it is cut into words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Normalizer {
    /// Unicode's canonical composition.
    Nfc,
    /// Unicode's compatibility composition.
    Nfkc,
    /// Lower case.
    Lowercase,
    /// White space at the ends is removed.
    Strip {
        /// At the beginning.
        left: bool,
        /// At the end.
        right: bool,
    },
    /// Spaces at the ends are removed and runs of them become one (`remove_extra_whitespaces`).
    OneSpace,
    /// Each `from` becomes `to`.
    Replace {
        /// Not empty.
        from: String,
        /// At most `MAX_REPLACEMENT` bytes.
        to: String,
    },
    /// Text that is not empty gets a beginning.
    Prepend {
        /// At most `MAX_REPLACEMENT` bytes.
        text: String,
        /// Only where it does not begin with it already (Metaspace).
        unless_there: bool,
        /// Only at the beginning of the input, not behind each special token.
        only_first: bool,
    },
}

/// Longest text that a normalizer puts into other text: an untrusted file must not blow a prompt up.
pub const MAX_REPLACEMENT: usize = 32;

/// How a special token is found in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Match {
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space behind it belongs to it.
    pub rstrip: bool,
}

/// The checked data of a tokenizer. Only this module and its readers make one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerSpec {
    /// Token texts by id as the file has them: in GPT-2's alphabet for ordinary tokens of byte-level BPE.
    pub tokens: Vec<String>,
    /// By id.
    pub kinds: Vec<TokenKind>,
    /// How words become tokens.
    pub model: TokenModel,
    /// Stands for characters without a token.
    pub unknown: Option<TokenId>,
    /// Changes to text, in order.
    pub normalizers: Vec<Normalizer>,
    /// Cuts into words, in order.
    pub cuts: Vec<Cut>,
    /// Special tokens that are not found just as they stand.
    pub matches: HashMap<TokenId, Match>,
    /// `▁` in an ordinary token is a space.
    pub escaped_spaces: bool,
    /// The space before the first token of a text is the tokenizer's own, and is not decoded.
    pub own_space: bool,
}

/// What a model needs to read and write text: its tokenizer's data, and what the file says around it.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// The tokenizer's data; shared, for it is large.
    pub tokenizer: Arc<TokenizerSpec>,
    /// Beginning of sequence.
    pub bos: Option<TokenId>,
    /// End of sequence; generation stops at any of these.
    pub eos: Vec<TokenId>,
    /// The file asks for BOS in front of a raw prompt.
    pub add_bos: bool,
    /// The chat template (Jinja), if the file has one.
    pub chat_template: Option<String>,
    /// Variables for it that are the user's (`--template-arg`), by name.
    pub template_variables: serde_json::Map<String, serde_json::Value>,
    /// Texts of the special tokens that templates name (`bos_token`, `eos_token`).
    pub bos_text: String,
    /// See `bos_text`.
    pub eos_text: String,
}

impl Vocabulary {
    /// What the chat template makes of a conversation depends on this text alone: its source and the user's variables, sorted by name.
    pub fn template_identity(&self) -> String {
        let source = self.chat_template.as_deref().unwrap_or("");
        if self.template_variables.is_empty() {
            return source.to_string();
        }
        let sorted: std::collections::BTreeMap<_, _> = self.template_variables.iter().collect();
        format!("{source}\0{}", serde_json::to_string(&sorted).unwrap_or_default())
    }

    /// The same with the words cut as the pre-tokenizer called `name` cuts them; `None` if it is unknown or the tokens are not bytes.
    pub fn with_pre_tokenizer(&self, name: &str) -> Option<Vocabulary> {
        let pre = PreTokenizer::named(name)?;
        let mut tokenizer = TokenizerSpec::clone(&self.tokenizer);
        let TokenModel::ByteBpe { whole, .. } = &mut tokenizer.model else { return None };
        *whole = if pre.ignore_merges { Whole::Always } else { Whole::Never };
        tokenizer.cuts = pre.cuts;
        Some(Vocabulary { tokenizer: Arc::new(tokenizer), ..self.clone() })
    }
}

/// GPT-2's byte-to-unicode alphabet: printable bytes stand for themselves, the others for U+0100 upwards.
pub fn byte_alphabet() -> [char; 256] {
    let mut next = 256u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
            char::from(byte)
        } else {
            let letter = char::from_u32(next).unwrap_or('\0');
            next = next.saturating_add(1);
            letter
        }
    })
}

/// The byte that a text `<0x00>` … `<0xFF>` stands for: six characters, capital digits, nothing else.
pub fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let capital =
        digits.len() == 2 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if capital { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Bytes that any text may hold. Published vocabularies do leave out bytes that no text has (0xC0, 0xF5 …) and rare controls.
fn needed(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..=0xbf | 0xc2..=0xf0)
}

/// Which part of the data is wrong; the reader knows what its container calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Tokens,
    Kinds,
    Merges,
    Scores,
    Special,
}

/// What is wrong with a tokenizer's data.
pub(super) type Fault = (Field, String);

/// How a reader found merges: as texts.
pub(super) enum RawModel {
    ByteBpe { merges: Vec<(String, String)>, whole: Whole },
    TextBpe { merges: Vec<(String, String)>, whole: Whole, fuse_unknown: bool },
    Scores { scores: Vec<f32> },
}

/// A tokenizer's data before it is checked; `spec.model` is not yet filled in.
pub(super) struct Raw {
    pub(super) spec: TokenizerSpec,
    pub(super) model: RawModel,
    /// BOS and the ends that the file names.
    pub(super) special: Vec<TokenId>,
}

/// At most 40 characters of a text from a file, for messages.
fn short(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    shown(&short)
}

impl Raw {
    /// Checks everything and resolves merges to ids.
    pub(super) fn check(self) -> Result<TokenizerSpec, Fault> {
        let Raw { mut spec, model, special } = self;
        let count = spec.tokens.len();
        if count == 0 {
            return Err((Field::Tokens, "is empty".into()));
        }
        if spec.kinds.len() != count {
            return Err((
                Field::Kinds,
                format!("has {} elements for {count} tokens", spec.kinds.len()),
            ));
        }
        let tokens = std::mem::take(&mut spec.tokens);
        let ids = ids_by_text(&tokens, &spec.kinds)?;
        if let Some(id) = special.iter().chain(&spec.unknown).find(|id| **id as usize >= count) {
            return Err((
                Field::Special,
                format!("the special token {id} is past the vocabulary of {count} tokens"),
            ));
        }
        let byte_level = matches!(model, RawModel::ByteBpe { .. });
        check_bytes(&tokens, &spec.kinds, &ids, byte_level, spec.unknown)?;
        let merged: HashSet<TokenId> = match &model {
            RawModel::ByteBpe { merges, .. } | RawModel::TextBpe { merges, .. } => {
                let mut both = String::new();
                let result = |(left, right): &(String, String)| {
                    both.clear();
                    both.extend([left.as_str(), right]);
                    ids.get(both.as_str()).copied()
                };
                merges.iter().filter_map(result).collect()
            }
            RawModel::Scores { .. } => HashSet::new(),
        };
        // Whether text becomes this token: then it is no control token, whatever its text looks like.
        let is_piece = |text: &str, kinds: &[TokenKind]| {
            let id = ids.get(text).copied();
            id.and_then(|id| kinds.get(id as usize))
                .is_some_and(|k| matches!(k, TokenKind::Normal | TokenKind::UserDefined))
        };
        let made = |id: TokenId, text: &str, kinds: &[TokenKind]| {
            let one = text.chars().nth(1).is_none();
            one || merged.contains(&id)
                || matches!(model, RawModel::Scores { .. })
                    && text.char_indices().skip(1).any(|(at, _)| {
                        text.split_at_checked(at)
                            .is_some_and(|(l, r)| is_piece(l, kinds) && is_piece(r, kinds))
                    })
        };
        let looks_so = tokens
            .iter()
            .enumerate()
            .filter(|(_, t)| ALWAYS_CONTROL.contains(&t.as_str()))
            .map(|(id, _)| id as TokenId);
        let ends: Vec<Option<TokenId>> = special.iter().map(|id| Some(*id)).collect();
        for id in looks_so.chain(special) {
            let Some(text) = tokens.get(id as usize) else { continue };
            let text_itself = made(id, text, &spec.kinds);
            match spec.kinds.get_mut(id as usize) {
                Some(TokenKind::Normal) if text_itself => {}
                Some(kind) => *kind = TokenKind::Control,
                None => {}
            }
        }
        if let Some(kind) = spec.unknown.and_then(|id| spec.kinds.get_mut(id as usize))
            && *kind == TokenKind::Control
            && !ends.contains(&spec.unknown)
        {
            *kind = TokenKind::Unknown;
        }
        spec.model = match model {
            RawModel::ByteBpe { merges, whole } => TokenModel::ByteBpe {
                merges: resolve(&merges, &ids, &tokens, &spec.kinds, true)?,
                whole,
            },
            RawModel::TextBpe { merges, whole, fuse_unknown } => TokenModel::TextBpe {
                merges: resolve(&merges, &ids, &tokens, &spec.kinds, false)?,
                whole,
                fuse_unknown,
            },
            RawModel::Scores { scores } => {
                if scores.len() != count {
                    return Err((
                        Field::Scores,
                        format!("has {} elements for {count} tokens", scores.len()),
                    ));
                }
                if let Some((i, score)) = scores.iter().enumerate().find(|(_, s)| !s.is_finite()) {
                    return Err((
                        Field::Scores,
                        format!("element {i} is {score}; scores are finite numbers"),
                    ));
                }
                TokenModel::Scores { scores }
            }
        };
        drop(ids);
        spec.tokens = tokens;
        Ok(spec)
    }
}

/// The ids of all texts, each of which is there once.
fn ids_by_text<'t>(
    tokens: &'t [String],
    kinds: &[TokenKind],
) -> Result<HashMap<&'t str, TokenId>, Fault> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (i, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        let problem = if token.is_empty() {
            if *kind != TokenKind::Normal {
                continue;
            }
            "is empty"
        } else if token.len() > MAX_TOKEN {
            "is longer than 64 KiB"
        } else if *kind == TokenKind::Byte && byte_of(token).is_none() {
            "is called a byte token, but is none of <0x00> to <0xFF>"
        } else if ids.insert(token.as_str(), i as TokenId).is_some() {
            "appears twice"
        } else {
            continue;
        };
        return Err((Field::Tokens, format!("element {i} ('{}') {problem}", short(token))));
    }
    Ok(ids)
}

/// Whether plain text can be encoded.
fn check_bytes(
    tokens: &[String],
    kinds: &[TokenKind],
    ids: &HashMap<&str, TokenId>,
    byte_level: bool,
    unknown: Option<TokenId>,
) -> Result<(), Fault> {
    let normal = |text: &str| {
        let kind = ids.get(text).and_then(|id| kinds.get(*id as usize));
        kind.is_some_and(|k| matches!(k, TokenKind::Normal | TokenKind::UserDefined))
    };
    if byte_level {
        if let Some(i) = kinds.iter().position(|k| *k == TokenKind::Byte) {
            let text = tokens.get(i).map(|t| short(t)).unwrap_or_default();
            return Err((
                Field::Tokens,
                format!(
                    "element {i} ('{text}') is a byte token, which byte-level BPE does not have"
                ),
            ));
        }
        for (byte, letter) in (0..=255u8).zip(byte_alphabet()).filter(|(byte, _)| needed(*byte)) {
            if !normal(letter.encode_utf8(&mut [0; 4])) {
                return Err((Field::Tokens, format!("no token for the byte 0x{byte:02x}")));
            }
        }
    } else if unknown.is_none() {
        for byte in (0x20..=0x7eu8).chain([b'\n']) {
            let text = if byte == b' ' { SPACE } else { char::from(byte) };
            if !normal(text.encode_utf8(&mut [0; 4]))
                && !ids.contains_key(format!("<0x{byte:02X}>").as_str())
            {
                return Err((
                    Field::Tokens,
                    format!(
                        "no token for the byte 0x{byte:02x}, and neither byte tokens nor an unknown token"
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Merges as ids. Those that take or make a control token are left out: no text becomes one.
fn resolve(
    merges: &[(String, String)],
    ids: &HashMap<&str, TokenId>,
    tokens: &[String],
    kinds: &[TokenKind],
    byte_level: bool,
) -> Result<Vec<Merge>, Fault> {
    // Of each ordinary token, once: a token is part of many merges.
    let letters: HashSet<char> = byte_alphabet().into();
    let most = letters.iter().map(|c| (*c as usize).saturating_add(1)).max().unwrap_or(0);
    let known: Vec<bool> =
        (0..most as u32).map(|c| char::from_u32(c).is_some_and(|c| letters.contains(&c))).collect();
    let spelled =
        |text: &String| text.chars().all(|c| known.get(c as usize).copied().unwrap_or(false));
    let foreign: Vec<bool> = match byte_level {
        true => tokens
            .iter()
            .zip(kinds)
            .map(|(text, kind)| *kind == TokenKind::Normal && !spelled(text))
            .collect(),
        false => Vec::new(),
    };
    let mut both = String::new();
    let mut resolved = Vec::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        let fault = |what: String| {
            (Field::Merges, format!("element {rank} ('{} {}') {what}", short(left), short(right)))
        };
        if left.is_empty() || right.is_empty() {
            return Err(fault("is not two texts with a space between".into()));
        }
        both.clear();
        both.extend([left.as_str(), right]);
        let id = |text: &str| {
            ids.get(text)
                .copied()
                .ok_or_else(|| fault(format!("names '{}', which is not a token", short(text))))
        };
        let merge = Merge { left: id(left)?, right: id(right)?, result: id(&both)? };
        let of = |id: TokenId| kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused);
        let parts = [merge.left, merge.right, merge.result];
        if parts.iter().any(|id| !matches!(of(*id), TokenKind::Normal | TokenKind::UserDefined)) {
            continue;
        }
        if let Some(id) =
            parts.iter().find(|id| foreign.get(**id as usize).copied().unwrap_or(false))
        {
            let text = tokens.get(*id as usize).map(|t| short(t)).unwrap_or_default();
            return Err(fault(format!(
                "names '{text}', which has characters that are not in the byte alphabet"
            )));
        }
        resolved.push(merge);
    }
    Ok(resolved)
}

/// All ends: those that the file names, then control tokens whose text ends a turn or a text.
/// Harmony's and Solar's `<|end|>` ends a message, not the answer, where they also have `<|return|>` and `<|call|>`.
pub(super) fn ends(named: Vec<TokenId>, spec: &TokenizerSpec) -> Vec<TokenId> {
    let mut ends = named;
    let control = |text: &str| {
        let id = spec.tokens.iter().position(|t| t == text)?;
        (spec.kinds.get(id) == Some(&TokenKind::Control)).then_some(id as TokenId)
    };
    let found: HashMap<&str, TokenId> =
        ENDS.iter().filter_map(|text| Some((*text, control(text)?))).collect();
    let has = |text: &str| found.contains_key(text);
    let messages = has("<|return|>") && has("<|call|>") || has("<|calls|>") && has("<|flush|>");
    for text in ENDS {
        if let Some(id) = found.get(text)
            && !ends.contains(id)
            && !(messages && *text == "<|end|>")
        {
            ends.push(*id);
        }
    }
    ends
}

/// Reads and checks the vocabulary of a GGUF file.
#[allow(clippy::too_many_lines, reason = "a check for each key, in the order of the file format")]
pub(super) fn from_gguf(file: &Gguf) -> Result<Vocabulary, ModelError> {
    let name = file.need_text("tokenizer.ggml.model")?;
    let tokens = file.texts("tokenizer.ggml.tokens")?.to_vec();
    let types = file.integers("tokenizer.ggml.token_type")?;
    let mut kinds = Vec::with_capacity(types.len());
    for (i, number) in types.iter().enumerate() {
        kinds.push(TokenKind::from_ggml(*number).ok_or_else(|| {
            file.error(format_args!(
                "metadata 'tokenizer.ggml.token_type': element {i} is {number}; 1 to 6 exist"
            ))
        })?);
    }
    let count = tokens.len();
    if count == 0 {
        return Err(file.error("metadata 'tokenizer.ggml.tokens' is empty"));
    }
    if file.has("tokenizer.ggml.scores")
        && file.array_len("tokenizer.ggml.scores") != Some(count as u64)
    {
        // BPE has no use for them, but a wrong length says that the arrays do not belong together.
        return Err(file.error(format_args!(
            "metadata 'tokenizer.ggml.scores' does not have {count} elements as the tokens do"
        )));
    }
    let id = |key: &str| -> Result<Option<TokenId>, ModelError> {
        Ok(file
            .integer(&format!("tokenizer.ggml.{key}"), 0..=(count as u64).saturating_sub(1))?
            .map(|n| n as TokenId))
    };
    let mut bos = id("bos_token_id")?;
    let mut eos = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(id(key)?.filter(|n| !eos.contains(n)));
    }
    let mut unknown = id("unknown_token_id")?;
    for key in ["padding_token_id", "separator_token_id", "mask_token_id"] {
        id(key)?;
    }

    let mut spec = TokenizerSpec { tokens, kinds, ..TokenizerSpec::default() };
    let add_bos;
    let model = match name {
        "gpt2" => {
            let name = file.need_text("tokenizer.ggml.pre")?;
            let pre = PreTokenizer::named(name).ok_or_else(|| {
                file.error(format_args!(
                    "metadata 'tokenizer.ggml.pre' is '{}', an unknown pre-tokenizer; {} are known, such as {}",
                    shown(name),
                    PreTokenizer::names().count(),
                    "llama-bpe, qwen2, qwen35, gpt-4o, tekken, smollm, gpt-2, default"
                ))
            })?;
            spec.cuts = pre.cuts;
            add_bos = pre.add_bos && bos.is_some();
            unknown = None;
            let whole = if pre.ignore_merges { Whole::Always } else { Whole::Never };
            RawModel::ByteBpe { merges: gguf_merges(file)?, whole }
        }
        "llama" => {
            let scores = file.floats("tokenizer.ggml.scores")?;
            // SentencePiece's own defaults, which old files rely on (llama.cpp has the same).
            let kind = |id: TokenId| spec.kinds.get(id as usize).copied();
            bos = bos.or(Some(1).filter(|id| kind(*id) == Some(TokenKind::Control)));
            if eos.is_empty() && kind(2) == Some(TokenKind::Control) {
                eos.push(2);
            }
            unknown = unknown.or(Some(0).filter(|id| kind(*id) == Some(TokenKind::Unknown)));
            add_bos = bos.is_some();
            if file.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false) {
                spec.normalizers.push(Normalizer::OneSpace);
            }
            spec.own_space = file.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            if spec.own_space {
                spec.normalizers.push(Normalizer::Prepend {
                    text: " ".into(),
                    unless_there: false,
                    only_first: false,
                });
            }
            spec.normalizers.push(Normalizer::Replace { from: " ".into(), to: SPACE.into() });
            spec.escaped_spaces = true;
            if is_phi3(file)? {
                spec.matches = phi3_matches(&spec);
            }
            RawModel::Scores { scores }
        }
        "gemma4" => {
            spec.normalizers.push(Normalizer::Replace { from: " ".into(), to: SPACE.into() });
            spec.cuts.push(Cut::Isolate("[^\n]+|\n+".into()));
            spec.escaped_spaces = true;
            add_bos = bos.is_some();
            RawModel::TextBpe {
                merges: gguf_merges(file)?,
                whole: Whole::LineFeeds,
                fuse_unknown: true,
            }
        }
        other => {
            return Err(file.error(format_args!(
                "metadata 'tokenizer.ggml.model' is '{}', which is not supported; gpt2 \
                 (byte-level BPE), llama (SentencePiece) and gemma4 are",
                shown(other)
            )));
        }
    };
    if eos.is_empty() {
        return Err(file.error("metadata 'tokenizer.ggml.eos_token_id' is missing"));
    }
    let asked = file.bool("tokenizer.ggml.add_bos_token")?;
    if asked == Some(true) && bos.is_none() {
        return Err(file.error("metadata 'tokenizer.ggml.add_bos_token' is true, but 'tokenizer.ggml.bos_token_id' is missing"));
    }
    // Gemma 4 files say false and mean true (llama.cpp overrides it too).
    let add_bos = if name == "gemma4" { add_bos } else { asked.unwrap_or(add_bos) };
    let chat_template = file.text("tokenizer.chat_template")?.map(String::from);
    if chat_template.as_ref().is_some_and(|text| text.len() > MAX_TEMPLATE) {
        return Err(file.error(format_args!(
            "metadata 'tokenizer.chat_template' is longer than {MAX_TEMPLATE} bytes"
        )));
    }

    spec.unknown = unknown;
    let special = bos.iter().chain(&eos).copied().collect();
    let spec = Raw { spec, model, special }.check().map_err(|(field, text)| {
        let (key, colon) = match field {
            Field::Tokens => ("tokens", ": "),
            Field::Kinds => ("token_type", " "),
            Field::Merges => ("merges", ": "),
            Field::Scores => ("scores", ": "),
            Field::Special => ("bos_token_id", ": "),
        };
        file.error(format_args!("metadata 'tokenizer.ggml.{key}'{colon}{text}"))
    })?;
    let text_of = |id: Option<TokenId>| {
        id.and_then(|id| spec.tokens.get(id as usize)).cloned().unwrap_or_default()
    };
    let (bos_text, eos_text) = (text_of(bos), text_of(eos.first().copied()));
    let eos = ends(eos, &spec);
    let template_variables = serde_json::Map::new();
    Ok(Vocabulary {
        tokenizer: Arc::new(spec),
        bos,
        eos,
        add_bos,
        chat_template,
        template_variables,
        bos_text,
        eos_text,
    })
}

/// `tokenizer.ggml.merges`: two texts with a space between; the first character may be a space itself.
fn gguf_merges(file: &Gguf) -> Result<Vec<(String, String)>, ModelError> {
    let pair = |(i, merge): (usize, &String)| {
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let parts = at.and_then(|at| Some((merge.get(..at)?, merge.get(at.saturating_add(1)..)?)));
        match parts {
                Some((left, right)) if !right.is_empty() => Ok((left.to_string(), right.to_string())),
                _ => Err(file
                    .error(format_args!("metadata 'tokenizer.ggml.merges': element {i} is not two texts with a space between"))),
            }
    };
    file.texts("tokenizer.ggml.merges")?.iter().enumerate().map(pair).collect()
}

/// Phi-3 and Phi-3.5: their special tokens swallow white space behind them, which GGUF files cannot say (llama.cpp goes by the name too).
fn is_phi3(file: &Gguf) -> Result<bool, ModelError> {
    let name = file.text("general.name")?.unwrap_or_default().to_lowercase();
    Ok(file.text("general.architecture")? == Some("phi3")
        || name.contains("phi-3")
        || name.contains("phi3"))
}

fn phi3_matches(spec: &TokenizerSpec) -> HashMap<TokenId, Match> {
    let special = spec.tokens.iter().zip(&spec.kinds).enumerate().filter(|(_, (text, kind))| {
        let special =
            matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
        special && !matches!(text.as_str(), "<unk>" | "<s>" | "<|endoftext|>")
    });
    special.map(|(id, _)| (id as TokenId, Match { rstrip: true, ..Match::default() })).collect()
}

/// Small vocabularies for tests, checked as those of files are.
#[cfg(test)]
pub(crate) mod example {
    use super::*;

    fn finish(
        spec: TokenizerSpec,
        model: RawModel,
        bos: TokenId,
        eos: TokenId,
    ) -> Result<Vocabulary, String> {
        let text = |id: TokenId| spec.tokens[id as usize].clone();
        let (bos_text, eos_text) = (text(bos), text(eos));
        let spec = Raw { spec, model, special: vec![bos, eos] }
            .check()
            .map_err(|(field, text)| format!("{field:?}: {text}"))?;
        let eos = ends(vec![eos], &spec);
        Ok(Vocabulary {
            tokenizer: Arc::new(spec),
            bos: Some(bos),
            eos,
            bos_text,
            eos_text,
            ..Vocabulary::default()
        })
    }

    /// Byte-level BPE with the pre-tokenizer of SmolLM2; BOS is 1, the end 2.
    pub fn byte_bpe(
        tokens: Vec<(String, TokenKind)>,
        merges: &[&str],
    ) -> Result<Vocabulary, String> {
        let (tokens, kinds) = tokens.into_iter().unzip();
        let cuts = PreTokenizer::named("smollm").unwrap().cuts;
        let merges = merges
            .iter()
            .map(|m| m.split_once(' ').unwrap())
            .map(|(l, r)| (l.into(), r.into()))
            .collect();
        finish(
            TokenizerSpec { tokens, kinds, cuts, ..TokenizerSpec::default() },
            RawModel::ByteBpe { merges, whole: Whole::Never },
            1,
            2,
        )
    }

    /// What a `tokenizer.json` says.
    pub fn json(file: &serde_json::Value) -> Result<Vocabulary, String> {
        let super::super::tokenizer_json::Read { raw, first } =
            super::super::tokenizer_json::read(file.to_string().as_bytes())?;
        let spec = raw.check().map_err(|(field, text)| {
            format!("{}: {text}", super::super::tokenizer_json::field(field))
        })?;
        Ok(Vocabulary {
            tokenizer: Arc::new(spec),
            add_bos: first.is_some(),
            ..Vocabulary::default()
        })
    }

    /// SentencePiece as GGUF files have it; token 0 is the unknown one, BOS is 1, the end 2.
    pub fn scores(
        tokens: Vec<(String, TokenKind, f32)>,
        space: bool,
    ) -> Result<Vocabulary, String> {
        let scores = tokens.iter().map(|t| t.2).collect();
        let mut normalizers = vec![Normalizer::Replace { from: " ".into(), to: SPACE.into() }];
        if space {
            normalizers.insert(
                0,
                Normalizer::Prepend { text: " ".into(), unless_there: false, only_first: false },
            );
        }
        let (tokens, kinds) = tokens.into_iter().map(|(text, kind, _)| (text, kind)).unzip();
        let spec = TokenizerSpec {
            tokens,
            kinds,
            unknown: Some(0),
            normalizers,
            escaped_spaces: true,
            own_space: space,
            ..TokenizerSpec::default()
        };
        finish(spec, RawModel::Scores { scores }, 1, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(tokens: &[(&str, TokenKind)], model: RawModel) -> Raw {
        let spec = TokenizerSpec {
            tokens: tokens.iter().map(|t| t.0.to_string()).collect(),
            kinds: tokens.iter().map(|t| t.1).collect(),
            unknown: Some(0),
            ..TokenizerSpec::default()
        };
        Raw { spec, model, special: Vec::new() }
    }

    #[test]
    fn byte_tokens_are_six_characters_with_capital_digits() {
        assert_eq!((byte_of("<0x0A>"), byte_of("<0xFF>")), (Some(10), Some(255)));
        for bad in
            ["<0x-1>", "<0x+1>", "<0x1>", "<0x100>", "<0xff>", "<0x0G>", "0x0A", "<0x 1>", ""]
        {
            assert_eq!(byte_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_that_merges_make_is_text_whatever_it_looks_like() {
        use TokenKind::*;
        let tokens = [
            ("<unk>", Unknown),
            ("</s", Normal),
            (">", Normal),
            ("<|end|>", Normal),
            ("</s>", Control),
            ("<|im_end|>", Normal),
        ];
        let merges = vec![("</s".to_string(), ">".to_string())];
        let model =
            RawModel::TextBpe { merges: merges.clone(), whole: Whole::Never, fuse_unknown: true };
        // The merge is left out: the file says that its result is a control token.
        let spec = raw(&tokens, model).check().unwrap();
        assert_eq!(
            spec.model,
            TokenModel::TextBpe { merges: vec![], whole: Whole::Never, fuse_unknown: true }
        );
        assert_eq!((spec.kinds[3], spec.kinds[5]), (Control, Control));
        assert_eq!(ends(vec![5], &spec), [5, 3, 4]);
        // An ordinary token, also if the file names it as an end.
        let mut tokens = tokens;
        tokens[4].1 = Normal;
        let model = RawModel::TextBpe { merges, whole: Whole::Never, fuse_unknown: true };
        let spec = Raw { special: vec![4, 2], ..raw(&tokens, model) }.check().unwrap();
        assert_eq!((spec.kinds[4], spec.kinds[2]), (Normal, Normal));
        assert!(matches!(spec.model, TokenModel::TextBpe { merges, .. } if merges.len() == 1));
        // The same of scores.
        let model = RawModel::Scores { scores: vec![0.0; 6] };
        let spec = Raw { special: vec![4, 5], ..raw(&tokens, model) }.check().unwrap();
        assert_eq!((spec.kinds[4], spec.kinds[5]), (Normal, Control));
    }

    #[test]
    fn a_message_end_of_harmony_does_not_end_the_answer() {
        use TokenKind::*;
        let tokens = [
            ("<unk>", Unknown),
            ("<|end|>", Control),
            ("<|return|>", Control),
            ("<|call|>", Control),
        ];
        let spec = raw(&tokens, RawModel::Scores { scores: vec![0.0; 4] }).check().unwrap();
        assert_eq!(ends(vec![2], &spec), [2, 3]);
    }

    #[test]
    fn faults_name_their_field() {
        use TokenKind::*;
        let scores = |s: Vec<f32>| RawModel::Scores { scores: s };
        let fault = |tokens: &[(&str, TokenKind)], model| raw(tokens, model).check().unwrap_err();
        let ok = [("<unk>", Unknown), ("a", Normal)];
        assert_eq!(fault(&ok, scores(vec![0.0])).0, Field::Scores);
        assert!(fault(&ok, scores(vec![0.0, f32::NAN])).1.contains("element 1 is NaN"));
        assert!(fault(&ok, scores(vec![f32::INFINITY, 0.0])).1.contains("element 0 is inf"));
        assert!(fault(&[("<0x-1>", Byte)], scores(vec![0.0])).1.contains("none of <0x00>"));
        assert!(
            fault(&[("a", Normal), ("a", Control)], scores(vec![0.0; 2]))
                .1
                .contains("appears twice")
        );
        assert!(fault(&[], scores(vec![])).1.contains("is empty"));
        let merge = |l: &str, r: &str| RawModel::TextBpe {
            merges: vec![(l.into(), r.into())],
            whole: Whole::Never,
            fuse_unknown: true,
        };
        assert!(fault(&ok, merge("a", "b")).1.contains("'b', which is not a token"));
        let mut none = raw(&[("a", Normal)], scores(vec![0.0]));
        none.spec.unknown = None;
        assert!(none.check().unwrap_err().1.contains("byte 0x20"));
    }
}
