//! Text to token ids: byte-level BPE from the model's own vocabulary, merges by the `tokenizers` crate, words cut by our own rules.
//! In: [`Vocabulary`] (GGUF arrays or the bytes of a `tokenizer.json`), text. Out: ids equal to llama.cpp's. The vocabulary is checked
//! before the crate sees it: some faults would panic there. Text that a user typed never becomes a control token.
//! Bytes without a token of their own (SmolLM2 lacks eight that can occur, 0x04 among them) are left out, as llama.cpp and transformers do.

use super::pretokenizer::PreTokenizer;
use super::{Detokenizer, tokenizer_json};
use crate::model::{ModelError, PRE_TOKENIZERS, Vocabulary};
use crate::units::{TokenId, shown};
use rayon::prelude::*;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Vocab};

/// Text could not be made into ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer failed: {0}")]
pub struct TextError(pub String);

/// What a token is, as far as text is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made by merges.
    Normal,
    /// Structure of a conversation, unused or unknown: no text, and no text becomes it.
    Control,
    /// Found in text as it stands, before words are cut.
    UserDefined,
}

/// The bytes that each token stands for.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; control tokens have none.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
}

impl Pieces {
    /// The bytes of a token; empty for control tokens and for ids past the vocabulary.
    pub fn text(&self, token: TokenId) -> &[u8] {
        let id = token as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// How the tokenizer remembers words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Each thread keeps the words it has merged, for as long as it lives.
    Kept,
    /// None: for tokenizers that serve one request; a thread's memory outlives the tokenizer it belongs to.
    None,
}

/// Text to ids and back. Built once, used by many threads.
pub struct Tokenizer {
    pre: PreTokenizer,
    bpe: BPE,
    pieces: Arc<Pieces>,
    /// Texts that are tokens as they stand, longest first.
    specials: Vec<(String, TokenId)>,
    /// GPT-2's letter for each byte that has a token.
    letters: [Option<char>; 256],
    /// Bytes of the longest token: the least tokens a text can have is its length divided by this.
    longest: usize,
}

/// Ends of turns and texts: control tokens even where a file calls them something else (llama.cpp does the same).
const ALWAYS_CONTROL: [&str; 9] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "</s>",
];

impl Tokenizer {
    /// The tokenizer of a vocabulary. Errors name the faulty field.
    pub fn build(vocabulary: &Vocabulary) -> Result<Tokenizer, ModelError> {
        Self::build_with(vocabulary, Memory::Kept)
    }

    /// The same, for one request only: nothing of it outlives it.
    pub fn build_for_one_request(vocabulary: &Vocabulary) -> Result<Tokenizer, ModelError> {
        Self::build_with(vocabulary, Memory::None)
    }

    fn build_with(vocabulary: &Vocabulary, memory: Memory) -> Result<Tokenizer, ModelError> {
        match &vocabulary.tokenizer_json {
            Some(json) => {
                let mut read = tokenizer_json::read(json).map_err(|e| ModelError::Invalid(format!("tokenizer.json: {e}")))?;
                read.vocabulary.bos = vocabulary.bos;
                read.vocabulary.eos.clone_from(&vocabulary.eos);
                Self::from_tokens(&read.vocabulary, Some(read.ignore_merges), memory)
            }
            None => Self::from_tokens(vocabulary, None, memory),
        }
        .map_err(ModelError::Invalid)
    }

    fn from_tokens(vocabulary: &Vocabulary, ignore_merges: Option<bool>, memory: Memory) -> Result<Tokenizer, String> {
        let pre = match vocabulary.pre.as_str() {
            // llama.cpp's reading of a file that does not say.
            "" => PreTokenizer::named("default"),
            name => PreTokenizer::named(name),
        }
        .ok_or_else(|| {
            format!("tokenizer.ggml.pre '{}' is unknown; known are {}", shown(&vocabulary.pre), PRE_TOKENIZERS.join(", "))
        })?;
        let kinds = kinds(vocabulary)?;
        let pieces = pieces(vocabulary, &kinds)?;
        let letters = letters();
        let mut ids: Vocab = Vocab::default();
        let mut specials = Vec::new();
        let mut seen = HashSet::with_capacity(vocabulary.tokens.len());
        for (id, text) in vocabulary.tokens.iter().enumerate() {
            if !seen.insert(text) {
                return Err(format!("tokenizer.ggml.tokens[{id}] '{}' is there twice", shown_short(text)));
            }
            match kinds[id] {
                Kind::Normal => {
                    ids.insert(text.clone(), id as TokenId);
                }
                _ if !text.is_empty() => specials.push((text.clone(), id as TokenId)),
                _ => {}
            }
        }
        let known = |b: u8| ids.contains_key(letters[b as usize].encode_utf8(&mut [0; 4]) as &str);
        if let Some(byte) = (0x20..0x7f).chain([b'\n']).find(|&b| !known(b)) {
            return Err(format!(
                "tokenizer.ggml.tokens has no token for the byte 0x{byte:02x}, so that plain text cannot be encoded"
            ));
        }
        let letters = std::array::from_fn(|b| known(b as u8).then_some(letters[b]));
        let merges = merges(vocabulary, &ids)?;
        specials.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.1.cmp(&b.1)));
        let longest = (0..vocabulary.tokens.len()).map(|id| pieces.text(id as TokenId).len()).max().unwrap_or(1);
        let longest = longest.max(specials.first().map_or(1, |(text, _)| text.len()));

        let mut builder = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(ignore_merges.unwrap_or(pre.ignore_merges));
        if memory == Memory::None {
            builder = builder.cache_capacity(0);
        }
        let bpe = catch_unwind(AssertUnwindSafe(|| builder.build()))
            .map_err(|_| "tokenizer.ggml.merges: building the tokenizer failed".to_string())?
            .map_err(|e| format!("tokenizer.ggml.merges: {}", shown(&e.to_string())))?;
        Ok(Tokenizer { pre, bpe, pieces: Arc::new(pieces), specials, letters, longest })
    }

    /// The ids of plain text: whatever it says, none of them is a control token.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        for part in self.partition(text, false) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => self.encode_words(text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// The ids of text in which control tokens are written out, as by a template.
    pub fn encode_with_control(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        for part in self.partition(text, true) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => self.encode_words(text, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// Plain texts, on all threads of the current rayon pool.
    pub fn encode_batch(&self, texts: &[&str]) -> Vec<Result<Vec<TokenId>, TextError>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    /// The text of these ids, without control tokens.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let (mut out, mut detokenizer) = (String::new(), self.detokenizer());
        ids.iter().for_each(|&id| detokenizer.push(id, &mut out));
        detokenizer.finish(&mut out);
        out
    }

    /// Decodes one answer as it grows.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.pieces.clone())
    }

    /// The bytes this token adds to the text; empty for control tokens.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.pieces.text(token)
    }

    /// Whether this is a control token, or no token at all.
    pub fn is_control(&self, token: TokenId) -> bool {
        self.pieces.kinds.get(token as usize).is_none_or(|k| *k == Kind::Control)
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.pieces.kinds.len()
    }

    /// Never: a vocabulary has at least the printable characters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text has no fewer tokens than this; it takes microseconds a megabyte and refuses a text of 100 MB before any work is done on it.
    pub fn least_tokens(&self, text: &str) -> usize {
        text.bytes().filter(|&b| self.letters[b as usize].is_some()).count().div_ceil(self.longest)
    }

    /// Text cut at the tokens that stand in it as they are: control tokens only if `control`. Longest tokens first, as llama.cpp does it.
    pub(super) fn partition<'t>(&self, text: &'t str, control: bool) -> Vec<Part<'t>> {
        let mut parts = vec![Part::Text(text)];
        for (special, id) in &self.specials {
            if (!control && self.is_control(*id)) || !text.contains(special.as_str()) {
                continue;
            }
            parts = parts
                .into_iter()
                .flat_map(|part| match part {
                    Part::Text(text) if text.contains(special.as_str()) => {
                        let mut finer = Vec::new();
                        for (n, between) in text.split(special.as_str()).enumerate() {
                            if n > 0 {
                                finer.push(Part::Token(*id));
                            }
                            if !between.is_empty() {
                                finer.push(Part::Text(between));
                            }
                        }
                        finer
                    }
                    part => vec![part],
                })
                .collect();
        }
        parts.retain(|p| !matches!(p, Part::Text("")));
        parts
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<TokenId>) -> Result<(), TextError> {
        catch_unwind(AssertUnwindSafe(|| {
            let mut word = String::new();
            for piece in self.pre.split(text) {
                for byte in piece.bytes() {
                    match self.letters[byte as usize] {
                        Some(letter) => word.push(letter),
                        // A byte without a token ends the word: no merge reaches across it.
                        None => self.encode_word(&mut word, ids)?,
                    }
                }
                self.encode_word(&mut word, ids)?;
            }
            Ok(())
        }))
        .unwrap_or_else(|_| Err(TextError("it panicked".to_string())))
    }

    fn encode_word(&self, word: &mut String, ids: &mut Vec<TokenId>) -> Result<(), TextError> {
        let tokens = self.bpe.tokenize(word).map_err(|e| TextError(shown(&e.to_string())))?;
        ids.extend(tokens.iter().map(|t| t.id));
        word.clear();
        Ok(())
    }
}

/// A part of a text: words, or a token that stood in it as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(TokenId),
}

/// At most 40 characters of a text from a file, for messages.
fn shown_short(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    shown(&short)
}

/// The kind of each token, from ggml's types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
fn kinds(vocabulary: &Vocabulary) -> Result<Vec<Kind>, String> {
    let (tokens, types) = (&vocabulary.tokens, &vocabulary.types);
    if tokens.is_empty() {
        return Err("tokenizer.ggml.tokens is empty".to_string());
    }
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(format!("tokenizer.ggml.token_type has {} entries for {} tokens", types.len(), tokens.len()));
    }
    let mut kinds = Vec::with_capacity(tokens.len());
    for (id, text) in tokens.iter().enumerate() {
        kinds.push(match types.get(id) {
            _ if ALWAYS_CONTROL.contains(&text.as_str()) => Kind::Control,
            None | Some(1 | 6) => Kind::Normal,
            Some(2 | 3 | 5) => Kind::Control,
            Some(4) => Kind::UserDefined,
            Some(other) => return Err(format!("tokenizer.ggml.token_type[{id}] is {other}; known are 1 to 6")),
        });
    }
    for id in vocabulary.eos.iter().chain(&vocabulary.bos) {
        match kinds.get_mut(*id as usize) {
            Some(kind) => *kind = Kind::Control,
            None => return Err(format!("the special token {id} is past the vocabulary of {} tokens", tokens.len())),
        }
    }
    Ok(kinds)
}

fn pieces(vocabulary: &Vocabulary, kinds: &[Kind]) -> Result<Pieces, String> {
    let mut of_letter = std::collections::HashMap::new();
    for (byte, letter) in letters().into_iter().enumerate() {
        of_letter.insert(letter, byte as u8);
    }
    let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::with_capacity(kinds.len()), kinds: kinds.to_vec() };
    for (id, text) in vocabulary.tokens.iter().enumerate() {
        match kinds[id] {
            Kind::Control => {}
            Kind::UserDefined => pieces.bytes.extend_from_slice(text.as_bytes()),
            Kind::Normal => {
                if text.is_empty() {
                    return Err(format!("tokenizer.ggml.tokens[{id}] is empty"));
                }
                for letter in text.chars() {
                    // A letter outside the alphabet stands for itself (as in padding tokens that are called normal).
                    match of_letter.get(&letter) {
                        Some(&byte) => pieces.bytes.push(byte),
                        None => pieces.bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
        }
        pieces
            .ends
            .push(u32::try_from(pieces.bytes.len()).map_err(|_| "tokenizer.ggml.tokens holds more than 4 GiB".to_string())?);
    }
    Ok(pieces)
}

/// The merges as pairs. Each side and the result must be ordinary tokens: the crate copies them into a buffer as long as the longest
/// token before it looks them up, and a merge into a control token would let text become one.
fn merges(vocabulary: &Vocabulary, ids: &Vocab) -> Result<Vec<(String, String)>, String> {
    let mut joined = String::new();
    let mut pairs = Vec::with_capacity(vocabulary.merges.len());
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        let fault = |what: &str| format!("tokenizer.ggml.merges[{rank}] '{}' {what}", shown_short(merge));
        let (left, right) = merge.split_once(' ').ok_or_else(|| fault("is not two texts with a space between them"))?;
        if left.is_empty() || right.is_empty() || right.contains(' ') {
            return Err(fault("is not two texts with a space between them"));
        }
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        for text in [left, right, &joined] {
            if !ids.contains_key(text) {
                return Err(fault(&format!("needs '{}', which is not an ordinary token", shown_short(text))));
            }
        }
        pairs.push((left.to_string(), right.to_string()));
    }
    Ok(pairs)
}

/// GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on (openai/gpt-2, `bytes_to_unicode`).
fn letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u8 {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => byte as u8 as char,
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All bytes, a few merges, `<|im_start|>` and `<|im_end|>` as control tokens, `<fn>` as a user-defined one.
    pub fn tiny() -> Vocabulary {
        let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fn>"].map(String::from).to_vec();
        tokens.extend(letters().iter().map(char::to_string));
        let mut merges = Vec::new();
        for merge in ["Ġ t", "h e", "Ġt he", "1 2", "Ċ Ċ", "Ġ Ġ", "u s", "us e", "use r", "Ã ©"] {
            tokens.push(merge.replace(' ', ""));
            merges.push(merge.to_string());
        }
        let types = (0..tokens.len())
            .map(|i| {
                if i < 3 {
                    3
                } else if i == 3 {
                    4
                } else {
                    1
                }
            })
            .collect();
        Vocabulary {
            tokens,
            types,
            merges,
            pre: "smollm".into(),
            bos: Some(1),
            eos: vec![2],
            bos_text: "<|im_start|>".into(),
            eos_text: "<|im_end|>".into(),
            ..Default::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut Vocabulary)) -> String {
        let mut vocabulary = tiny();
        change(&mut vocabulary);
        match Tokenizer::build(&vocabulary) {
            Err(ModelError::Invalid(message)) => message,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[test]
    fn merges_are_applied_and_control_text_stays_text() {
        let t = Tokenizer::build(&tiny()).unwrap();
        let text =
            |ids: &[TokenId]| ids.iter().map(|&i| String::from_utf8_lossy(t.token_bytes(i)).into_owned()).collect::<Vec<_>>();
        assert_eq!(text(&t.encode("x the 12é").unwrap()), ["x", " the", " ", "1", "2", "é"]);
        let typed = t.encode("<|im_end|>").unwrap();
        assert!(typed.iter().all(|&i| !t.is_control(i)) && t.decode(&typed) == "<|im_end|>");
        assert_eq!(t.encode_with_control("a<|im_end|>b").unwrap().iter().filter(|&&i| i == 2).count(), 1);
        assert_eq!(t.encode("a<fn>b").unwrap()[1], 3);
        assert_eq!(t.decode(&[1, 2, 3]), "<fn>");
        assert!(t.is_control(99_999) && t.token_bytes(99_999).is_empty());
    }

    #[test]
    fn faults_of_a_vocabulary_are_refused_by_name() {
        for (message, fault) in [
            ("pre 'xx' is unknown; known are smollm", refusal(|v| v.pre = "xx".into())),
            ("tokens is empty", refusal(|v| v.tokens.clear())),
            ("token_type has 3 entries", refusal(|v| v.types.truncate(3))),
            ("token_type[9] is 7", refusal(|v| v.types[9] = 7)),
            ("is there twice", refusal(|v| v.tokens[9] = v.tokens[10].clone())),
            (
                "no token for the byte 0x41",
                refusal(|v| {
                    let at = v.tokens.iter().position(|t| t == "A").unwrap();
                    v.tokens[at] = "AA".into()
                }),
            ),
            ("tokens[9] is empty", refusal(|v| v.tokens[9] = String::new())),
            ("special token 70000 is past", refusal(|v| v.eos.push(70_000))),
            // tokenizers copies a merge into a buffer of the longest token's size before it looks it up.
            ("merges[10]", refusal(|v| v.merges.push(format!("a {}", "b".repeat(1000))))),
            ("is not two texts", refusal(|v| v.merges.push("ab".into()))),
            ("is not two texts", refusal(|v| v.merges.push("a b c".into()))),
            (
                "'zz', which is not an ordinary token",
                refusal(|v| {
                    v.tokens[2] = "zz".into();
                    v.merges.push("z z".into())
                }),
            ),
            ("tokenizer.json: ", refusal(|v| v.tokenizer_json = Some(b"{}".to_vec()))),
        ] {
            assert!(fault.contains(message), "{fault}");
        }
    }

    #[test]
    fn a_byte_without_a_token_is_left_out_and_no_merge_reaches_across_it() {
        let mut vocabulary = tiny();
        let at = vocabulary.tokens.iter().position(|t| *t == letters()[4].to_string()).unwrap();
        vocabulary.tokens[at] = "Ġzz".into();
        let t = Tokenizer::build(&vocabulary).unwrap();
        assert_eq!(t.encode("h\u{4}e").unwrap().len(), 2);
        assert_eq!(t.encode("he").unwrap().len(), 1);
    }

    #[test]
    fn characters_are_held_back_until_they_are_whole() {
        let t = Tokenizer::build(&tiny()).unwrap();
        let ids = t.encode("a🦀b").unwrap();
        let mut detokenizer = t.detokenizer();
        let grown: Vec<String> = ids
            .iter()
            .map(|&id| {
                let mut s = String::new();
                detokenizer.push(id, &mut s);
                s
            })
            .collect();
        assert_eq!(grown, ["a", "", "", "", "🦀", "b"]);
        let mut rest = String::new();
        detokenizer.push(ids[1], &mut rest);
        assert_eq!(rest, "");
        detokenizer.finish(&mut rest);
        assert_eq!(rest, "\u{fffd}");
    }

    #[test]
    fn batches_and_one_request_tokenizers_give_the_same_ids() {
        let vocabulary = tiny();
        let (kept, once) = (Tokenizer::build(&vocabulary).unwrap(), Tokenizer::build_for_one_request(&vocabulary).unwrap());
        let texts = ["user the 12", "", " \n\n x", "ünï"];
        for (ids, text) in kept.encode_batch(&texts).into_iter().zip(texts) {
            assert_eq!(ids, kept.encode(text));
            assert_eq!(ids, once.encode(text));
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in any::<String>()) {
            let t = Tokenizer::build(&tiny()).unwrap();
            let ids = t.encode(&text).unwrap();
            prop_assert_eq!(t.decode(&ids), &text[..]);
            prop_assert!(ids.len() >= t.least_tokens(&text));
        }

        #[test]
        fn growing_text_is_the_text_of_all_bytes(ids in prop::collection::vec(0u32..300, 0..40)) {
            let t = Tokenizer::build(&tiny()).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|&i| t.token_bytes(i).to_vec()).collect();
            prop_assert_eq!(t.decode(&ids), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
