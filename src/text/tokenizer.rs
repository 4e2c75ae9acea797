//! Text to token ids and back. In: a checked [`TokenizerSpec`], text. Out: the ids that transformers gives for a `tokenizer.json` and
//! llama.cpp for a GGUF file. Byte-level BPE, BPE over characters and SentencePiece's scores are one engine ([`Word`]). Text that a
//! user typed never becomes a control token. Bytes without a token of their own (SmolLM2 lacks eight that can occur, 0x04 among
//! them) are left out, as llama.cpp and transformers do.

use super::Detokenizer;
use super::merging::{NONE, Word, rank_of};
use super::normalizer::normalize;
use super::pieces::{Kind, Pieces, pieces};
use super::pretokenizer::PreTokenizer;
use super::specials::{Part, Specials};
use crate::model::{
    ModelError, Normalizer, TokenKind, TokenModel, TokenizerSpec, Vocabulary, Whole, byte_alphabet,
    byte_of,
};
use crate::units::TokenId;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// Text could not be made into ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer failed: {0}")]
pub struct TextError(pub String);

/// How symbols become tokens.
enum Merging {
    /// Rank and result of two neighbouring tokens.
    Pairs(HashMap<(TokenId, TokenId), (u32, TokenId)>),
    /// Token and rank of each text; no pair is longer than `longest` bytes.
    Texts { tokens: HashMap<Box<str>, (u32, TokenId)>, longest: u32 },
}

/// What symbols are.
enum Symbols {
    /// Bytes, with their tokens.
    Bytes(Box<[TokenId; 256]>),
    /// Characters, with the tokens of those that have one, and of single bytes.
    Characters {
        tokens: HashMap<char, TokenId>,
        bytes: Box<[TokenId; 256]>,
        unknown: TokenId,
        fuse: bool,
    },
}

/// What is known about the least number of tokens of a text.
#[derive(Clone, Copy)]
enum Least {
    /// Nothing: normalizers or unknown characters may make it as short as they like.
    Unknown,
    /// A token takes at most so many bytes; those of white space count only if `spaces`.
    Bytes { most: usize, spaces: bool },
}

/// Text to ids and back. Built once, used by many threads.
pub struct Tokenizer {
    spec: Arc<TokenizerSpec>,
    pre: PreTokenizer,
    symbols: Symbols,
    merging: Merging,
    /// Words that are tokens.
    whole: HashMap<Box<[u8]>, TokenId>,
    pieces: Arc<Pieces>,
    /// All special tokens.
    all: Specials,
    /// What marks a conversation: found in what a template writes before anything else. Other user-defined tokens (a run of spaces) are
    /// found in the text as a whole.
    marks: Specials,
    /// What a user may write.
    typed: Specials,
    least: Least,
}

/// Whether a user-defined token is a mark of conversations: something between signs, such as `<start_of_turn>` or `[INST]`.
fn looks_like_marker(text: &str) -> bool {
    let ends = text.chars().next().zip(text.chars().next_back());
    text.chars().count() > 2
        && ends.is_some_and(|(a, b)| a.is_ascii_punctuation() && b.is_ascii_punctuation())
        && text.chars().any(char::is_alphanumeric)
        && !text.contains(char::is_whitespace)
}

impl Tokenizer {
    /// The tokenizer of a vocabulary. Errors name the faulty field.
    pub fn build(vocabulary: &Vocabulary) -> Result<Tokenizer, ModelError> {
        Self::from_spec(
            vocabulary.tokenizer.clone(),
            vocabulary.chat_template.as_deref().unwrap_or_default(),
        )
        .map_err(ModelError::Invalid)
    }

    fn from_spec(spec: Arc<TokenizerSpec>, template: &str) -> Result<Tokenizer, String> {
        if spec.tokens.is_empty() {
            return Err("the vocabulary is empty".into());
        }
        let kind = |(text, kind): (&String, &TokenKind)| match kind {
            TokenKind::Normal | TokenKind::Byte => Kind::Normal,
            TokenKind::Control | TokenKind::Unused => Kind::Control,
            TokenKind::Unknown => Kind::Unknown,
            TokenKind::UserDefined
                if looks_like_marker(text) && template.contains(text.as_str()) =>
            {
                Kind::Marker
            }
            TokenKind::UserDefined => Kind::UserDefined,
        };
        let kinds: Vec<Kind> = spec.tokens.iter().zip(&spec.kinds).map(kind).collect();
        let pieces = pieces(&spec, kinds)?;
        let kinds = &pieces.kinds;
        let text_of = |id: TokenId| spec.tokens.get(id as usize).map_or("", |t| t.as_str());
        // Merges may make a user's token (two spaces), but never what users cannot type.
        let free =
            |id: TokenId| matches!(kinds.get(id as usize), Some(Kind::Normal | Kind::UserDefined));
        let ids = || {
            (0..spec.tokens.len() as TokenId)
                .filter(|id| free(*id) && spec.kinds[*id as usize] != TokenKind::Byte)
        };

        let merging = match &spec.model {
            TokenModel::ByteBpe { merges, .. } | TokenModel::TextBpe { merges, .. } => {
                let mut pairs = HashMap::with_capacity(merges.len());
                for (rank, merge) in
                    merges.iter().enumerate().filter(|(_, merge)| free(merge.result))
                {
                    pairs.entry((merge.left, merge.right)).or_insert((rank as u32, merge.result));
                }
                Merging::Pairs(pairs)
            }
            TokenModel::Scores { scores } => {
                let normal = ids().filter(|id| kinds[*id as usize] == Kind::Normal);
                let tokens: HashMap<Box<str>, _> = normal
                    .map(|id| (text_of(id).into(), (rank_of(scores[id as usize]), id)))
                    .collect();
                let longest = tokens.keys().map(|t| t.len()).max().unwrap_or(0) as u32;
                Merging::Texts { tokens, longest }
            }
        };
        let symbols = symbols(&spec, &ids().collect::<Vec<_>>(), free);
        let mut whole = HashMap::new();
        if let TokenModel::ByteBpe { whole: rule, .. } | TokenModel::TextBpe { whole: rule, .. } =
            &spec.model
            && *rule != Whole::Never
        {
            for id in ids().filter(|id| kinds[*id as usize] == Kind::Normal) {
                let text = match symbols {
                    Symbols::Bytes(_) => pieces.text(id),
                    Symbols::Characters { .. } => text_of(id).as_bytes(),
                };
                if *rule == Whole::Always || text.iter().all(|b| *b == b'\n') {
                    whole.insert(text.into(), id);
                }
            }
        }
        let special = |wanted: &dyn Fn(Kind, &str) -> bool| {
            let all = spec.tokens.iter().zip(&spec.kinds).enumerate();
            let all = all.filter(|(id, (text, kind))| {
                **kind != TokenKind::Unused && wanted(kinds[*id], text)
            });
            Specials::new(all.map(|(id, (text, _))| {
                (
                    text.as_str(),
                    id as TokenId,
                    spec.matches.get(&(id as TokenId)).copied().unwrap_or_default(),
                )
            }))
        };
        let all = special(&|kind, _| kind != Kind::Normal)?;
        let marks = special(&|kind, text| match kind {
            Kind::UserDefined => looks_like_marker(text),
            kind => kind != Kind::Normal,
        })?;
        let typed = special(&|kind, _| kind == Kind::UserDefined)?;
        let pre = PreTokenizer::new(&spec.cuts)?;
        let least = least(&spec, &pieces, &symbols);
        Ok(Tokenizer {
            pre,
            symbols,
            merging,
            whole,
            pieces: Arc::new(pieces),
            all,
            marks,
            typed,
            least,
            spec,
        })
    }

    /// The ids of plain text: whatever it says, none of them is a control token.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        self.encode_typed(text, true, &[], &mut ids);
        Ok(ids)
    }

    /// The ids of text that goes on where other text ended: no space of the tokenizer's own is put in front.
    pub fn encode_continued(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let (mut ids, mut word) = (Vec::with_capacity(text.len() / 4 + 1), Word::default());
        for (n, part) in self.typed.cut(text, |_| true).into_iter().enumerate() {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) if n == 0 => {
                    self.encode_normalized(&self.normalized_inside(text), &mut word, &mut ids)
                }
                Part::Text(text) => self.encode_words(text, false, &mut word, &mut ids),
            }
        }
        Ok(ids)
    }

    /// The ids of text in which control tokens are written out, as by a template.
    pub fn encode_with_control(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        let (mut ids, mut word) = (Vec::with_capacity(text.len() / 4 + 1), Word::default());
        for (n, part) in self.all.cut(text, |_| true).into_iter().enumerate() {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => self.encode_words(text, n == 0, &mut word, &mut ids),
            }
        }
        Ok(ids)
    }

    /// Plain texts, on all threads of the current rayon pool.
    pub fn encode_batch(&self, texts: &[&str]) -> Vec<Result<Vec<TokenId>, TextError>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    /// The text of these ids, without control tokens and without the space that encoding put in front.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let (mut out, mut detokenizer) = (String::new(), self.detokenizer());
        ids.iter().for_each(|&id| detokenizer.push(id, &mut out));
        detokenizer.finish(&mut out);
        if self.spec.own_space && out.starts_with(' ') {
            out.remove(0);
        }
        out
    }

    /// Decodes one answer as it grows; a space that it begins with stays, for the answer goes on where the prompt ended.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.pieces.clone())
    }

    /// The bytes this token adds to the text; empty for control tokens.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.pieces.text(token)
    }

    /// The bytes of a token that answers consist of: none for control tokens and marks of conversations.
    pub fn said_bytes(&self, token: TokenId) -> &[u8] {
        match self.pieces.kinds.get(token as usize) {
            Some(Kind::Normal | Kind::UserDefined) => self.pieces.text(token),
            _ => &[],
        }
    }

    /// The bytes that a token is spelled with: control tokens too.
    pub fn spelled(&self, token: TokenId) -> &[u8] {
        match self.pieces.kinds.get(token as usize) {
            Some(Kind::Control | Kind::Unknown) => self.spec.tokens[token as usize].as_bytes(),
            _ => self.pieces.text(token),
        }
    }

    /// The special token (control or user-defined) whose text this is.
    pub fn special(&self, text: &str) -> Option<TokenId> {
        match self.all.cut(text, |_| true)[..] {
            [Part::Token(id)] if self.spec.tokens.get(id as usize).is_some_and(|t| t == text) => {
                Some(id)
            }
            _ => None,
        }
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
        let Least::Bytes { most, spaces } = self.least else { return 0 };
        let bytes = match &self.symbols {
            Symbols::Bytes(tokens) => text
                .bytes()
                .filter(|&b| tokens[b as usize] != NONE && (spaces || !b.is_ascii_whitespace()))
                .count(),
            Symbols::Characters { .. } if spaces => text.len(),
            Symbols::Characters { .. } => text.split_whitespace().map(str::len).sum(),
        };
        bytes.div_ceil(most)
    }

    /// Text of a template cut at the marks of conversations in it.
    pub(super) fn scaffold<'t>(&self, text: &'t str) -> Vec<Part<'t>> {
        self.marks.cut(text, |_| true)
    }

    /// Whether white space before and behind this token belongs to it.
    pub(super) fn strips(&self, token: TokenId) -> (bool, bool) {
        self.spec.matches.get(&token).map_or((false, false), |rule| (rule.lstrip, rule.rstrip))
    }

    /// Whether the template wrote a mark of conversations that users can type so far.
    pub(super) fn is_typeable_marker(&self, token: TokenId) -> bool {
        let text = self.spec.tokens.get(token as usize);
        self.pieces.kinds.get(token as usize) == Some(&Kind::UserDefined)
            && text.is_some_and(|t| looks_like_marker(t))
    }

    /// Appends the ids of plain text; `first` says that it begins the input, `forbidden` are user-defined tokens that stay text here.
    pub(super) fn encode_typed(
        &self,
        text: &str,
        first: bool,
        forbidden: &[TokenId],
        ids: &mut Vec<TokenId>,
    ) {
        let mut word = Word::default();
        for (n, part) in self.typed.cut(text, |id| !forbidden.contains(&id)).into_iter().enumerate()
        {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => self.encode_words(text, first && n == 0, &mut word, ids),
            }
        }
    }

    fn encode_words(&self, text: &str, first: bool, word: &mut Word, ids: &mut Vec<TokenId>) {
        self.encode_normalized(&normalize(&self.spec.normalizers, text, first), word, ids);
    }

    /// Normalized without a beginning of the tokenizer's own.
    fn normalized_inside(&self, text: &str) -> String {
        let steps: Vec<Normalizer> = self
            .spec
            .normalizers
            .iter()
            .filter(|n| !matches!(n, Normalizer::Prepend { .. }))
            .cloned()
            .collect();
        normalize(&steps, text, false).into_owned()
    }

    fn encode_normalized(&self, text: &str, word: &mut Word, ids: &mut Vec<TokenId>) {
        for piece in self.pre.split(text) {
            if let Some(&id) = self.whole.get(piece.as_bytes()) {
                ids.push(id);
                continue;
            }
            match &self.symbols {
                Symbols::Bytes(tokens) => {
                    word.clear();
                    for byte in piece.bytes() {
                        match tokens[byte as usize] {
                            // A byte without a token ends the word: no merge reaches across it.
                            NONE => {
                                self.merge(word, "", ids);
                                word.clear();
                            }
                            id => word.push(id, 1),
                        }
                    }
                    self.merge(word, "", ids);
                }
                Symbols::Characters { tokens, .. } => {
                    word.clear();
                    for letter in piece.chars() {
                        word.push(tokens.get(&letter).copied().unwrap_or(NONE), letter.len_utf8());
                    }
                    self.merge(word, piece, ids);
                }
            }
        }
    }

    /// Merges a word and appends its tokens; `text` is the word's where symbols are characters.
    fn merge(&self, word: &mut Word, text: &str, ids: &mut Vec<TokenId>) {
        match &self.merging {
            Merging::Pairs(pairs) => {
                word.merge(|left, right| pairs.get(&(left.id, right.id)).copied())
            }
            Merging::Texts { tokens, longest } => word.merge(|left, right| {
                let len = left.len + right.len;
                if len > *longest {
                    return None;
                }
                tokens.get(&text[left.start as usize..(left.start + len) as usize]).copied()
            }),
        }
        let mut after_unknown = false;
        for symbol in word.symbols() {
            if symbol.id != NONE {
                ids.push(symbol.id);
                after_unknown = false;
                continue;
            }
            // Only a character without a token is left without one.
            let Symbols::Characters { bytes, unknown, fuse, .. } = &self.symbols else { continue };
            let letter = text[symbol.start as usize..(symbol.start + symbol.len) as usize].bytes();
            if letter.clone().all(|b| bytes[b as usize] != NONE) {
                ids.extend(letter.map(|b| bytes[b as usize]));
                after_unknown = false;
            } else if *unknown != NONE {
                if !(after_unknown && *fuse) {
                    ids.push(*unknown);
                }
                after_unknown = true;
            }
        }
    }
}

/// The tokens that text begins as; `ids`: those that users can type and that are no bytes, `free` tells them.
fn symbols(spec: &TokenizerSpec, ids: &[TokenId], free: impl Fn(TokenId) -> bool) -> Symbols {
    match &spec.model {
        TokenModel::ByteBpe { .. } => {
            let letters: HashMap<char, u8> = byte_alphabet().into_iter().zip(0..=255).collect();
            let mut bytes = Box::new([NONE; 256]);
            for id in ids {
                let mut text = spec.tokens[*id as usize].chars();
                if let (Some(letter), None) = (text.next(), text.next())
                    && let Some(byte) = letters.get(&letter)
                {
                    bytes[*byte as usize] = *id;
                }
            }
            Symbols::Bytes(bytes)
        }
        TokenModel::TextBpe { .. } | TokenModel::Scores { .. } => {
            let (mut tokens, mut bytes) = (HashMap::new(), Box::new([NONE; 256]));
            for (id, (text, kind)) in spec.tokens.iter().zip(&spec.kinds).enumerate() {
                if *kind == TokenKind::Byte {
                    if let Some(byte) = byte_of(text) {
                        bytes[byte as usize] = id as TokenId;
                    }
                    continue;
                }
                let mut letters = text.chars();
                if let (Some(letter), None, true) =
                    (letters.next(), letters.next(), free(id as TokenId))
                {
                    tokens.insert(letter, id as TokenId);
                }
            }
            let fuse = matches!(
                spec.model,
                TokenModel::Scores { .. } | TokenModel::TextBpe { fuse_unknown: true, .. }
            );
            Symbols::Characters { tokens, bytes, unknown: spec.unknown.unwrap_or(NONE), fuse }
        }
    }
}

/// What can be said about the least number of tokens.
fn least(spec: &TokenizerSpec, pieces: &Pieces, symbols: &Symbols) -> Least {
    if let Symbols::Characters { bytes, fuse, .. } = symbols
        && bytes.contains(&NONE)
        && (*fuse || spec.unknown.is_none())
    {
        return Least::Unknown;
    }
    let mut most = 4;
    for (id, text) in spec.tokens.iter().enumerate() {
        most = most.max(pieces.text(id as TokenId).len());
        if pieces.kinds[id] == Kind::UserDefined {
            most = most.max(text.len());
        }
    }
    let mut spaces = !spec.matches.values().any(|rule| rule.lstrip || rule.rstrip);
    for step in &spec.normalizers {
        match step {
            // No composition, compatibility form or lower case is shorter than an eighth of what it came from.
            Normalizer::Nfc | Normalizer::Nfkc | Normalizer::Lowercase => {
                most = most.saturating_mul(8)
            }
            Normalizer::Strip { .. } | Normalizer::OneSpace => spaces = false,
            Normalizer::Replace { from, to } if to.len() < from.len() => return Least::Unknown,
            // In decoded tokens it is a space again.
            Normalizer::Replace { .. } | Normalizer::Prepend { .. } => {}
        }
    }
    Least::Bytes { most, spaces }
}
#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::SPACE;
    use crate::model::example;
    use proptest::prelude::*;

    /// All bytes, a few merges, `<|im_start|>` and `<|im_end|>` as control tokens, `<fn>` as a user-defined one.
    pub fn tiny() -> Vocabulary {
        let control = |text: &str| (text.to_string(), TokenKind::Control);
        let mut tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(control).to_vec();
        tokens.push(("<fn>".into(), TokenKind::UserDefined));
        tokens.extend(byte_alphabet().iter().map(|letter| (letter.to_string(), TokenKind::Normal)));
        let merges = ["Ġ t", "h e", "Ġt he", "1 2", "Ċ Ċ", "Ġ Ġ", "u s", "us e", "use r", "Ã ©"];
        tokens.extend(merges.iter().map(|merge| (merge.replace(' ', ""), TokenKind::Normal)));
        example::byte_bpe(tokens, &merges).unwrap()
    }

    /// SentencePiece: byte tokens, printable ASCII, a few words, a control token that letters could spell, a user-defined mark.
    pub fn pieces_with_scores(space: bool) -> Vocabulary {
        use TokenKind::*;
        let mut tokens = vec![
            ("<unk>".to_string(), Unknown, 0.0),
            ("<s>".into(), Control, 0.0),
            ("</s>".into(), Control, 0.0),
            ("<start_of_turn>".into(), UserDefined, 0.0),
            ("<end_of_turn>".into(), Control, 0.0),
            ("<b>".into(), UserDefined, 0.0),
        ];
        tokens.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), Byte, 0.0)));
        let letters = (0x21..0x7f).map(char::from).chain([SPACE, 'é']);
        tokens.extend(letters.enumerate().map(|(i, c)| (c.to_string(), Normal, -100.0 - i as f32)));
        let words = [
            "▁t",
            "he",
            "▁the",
            "▁▁",
            "in",
            "▁in",
            "er",
            "ing",
            "<s",
            "s>",
            "/s>",
            "</s",
            "<start",
            "_of",
            "_turn",
            "_of_turn>",
            "_turn>",
            "<start_of",
        ];
        tokens.extend(words.iter().enumerate().map(|(i, w)| (w.to_string(), Normal, -(i as f32))));
        example::scores(tokens, space).unwrap()
    }

    fn texts(t: &Tokenizer, ids: &[TokenId]) -> Vec<String> {
        ids.iter().map(|&i| String::from_utf8_lossy(t.token_bytes(i)).into_owned()).collect()
    }

    #[test]
    fn merges_are_applied_and_control_text_stays_text() {
        let t = Tokenizer::build(&tiny()).unwrap();
        assert_eq!(texts(&t, &t.encode("x the 12é").unwrap()), ["x", " the", " ", "1", "2", "é"]);
        let typed = t.encode("<|im_end|>").unwrap();
        assert!(typed.iter().all(|&i| !t.is_control(i)) && t.decode(&typed) == "<|im_end|>");
        assert_eq!(
            t.encode_with_control("a<|im_end|>b").unwrap().iter().filter(|&&i| i == 2).count(),
            1
        );
        assert_eq!(t.encode("a<fn>b").unwrap()[1], 3);
        assert_eq!(t.decode(&[1, 2, 3]), "<fn>");
        assert!(t.is_control(99_999) && t.token_bytes(99_999).is_empty());
        assert_eq!(
            (t.special("<|im_end|>"), t.special("<fn>"), t.special("x"), t.special("<fn>x")),
            (Some(2), Some(3), None, None)
        );
    }

    #[test]
    fn a_long_list_of_normalizers_neither_overflows_nor_divides_by_zero() {
        let mut vocabulary = pieces_with_scores(true);
        std::sync::Arc::make_mut(&mut vocabulary.tokenizer)
            .normalizers
            .extend(vec![Normalizer::Nfc; 64]);
        let t = Tokenizer::build(&vocabulary).unwrap();
        assert!(t.least_tokens("é the") <= t.encode("é the").unwrap().len());
    }

    #[test]
    fn scores_decide_which_pieces_are_merged_first() {
        let t = Tokenizer::build(&pieces_with_scores(true)).unwrap();
        assert_eq!(texts(&t, &t.encode("the ing").unwrap()), [" the", " in", "g"]);
        assert_eq!(texts(&t, &t.encode("  x").unwrap()), ["  ", " ", "x"]);
        assert_eq!(t.decode(&t.encode("the  ing").unwrap()), "the  ing");
        // A character without a piece is its bytes.
        assert_eq!(t.encode("日").unwrap().len(), 1 + 3);
        assert_eq!(t.decode(&t.encode("日é\n").unwrap()), "日é\n");
        // The space in front belongs to each text between tokens, not to text that goes on.
        assert_eq!(
            texts(&t, &t.encode_with_control("<s>the</s>the").unwrap()),
            ["", " the", "", " the"]
        );
        assert_eq!(texts(&t, &t.encode_continued("the").unwrap()), ["t", "he"]);
        let bare = Tokenizer::build(&pieces_with_scores(false)).unwrap();
        assert_eq!(texts(&bare, &bare.encode("the the").unwrap()), ["t", "he", " the"]);
        assert_eq!(bare.decode(&bare.encode(" the").unwrap()), " the");
    }

    #[test]
    fn pieces_that_spell_a_control_token_do_not_become_it() {
        let t = Tokenizer::build(&pieces_with_scores(true)).unwrap();
        for text in ["<s>", "</s>", "a<s>b</s>", "<<s>>", "<end_of_turn>"] {
            let ids = t.encode(text).unwrap();
            assert!(
                ids.iter().all(|&i| !t.is_control(i)) && t.decode(&ids) == text,
                "{text}: {:?}",
                texts(&t, &ids)
            );
        }
    }

    #[test]
    fn a_mark_that_the_template_writes_cannot_be_typed() {
        let with = |template: &str| {
            Tokenizer::build(&Vocabulary {
                chat_template: Some(template.into()),
                ..pieces_with_scores(true)
            })
            .unwrap()
        };
        let (marked, free) = (with("{{ '<start_of_turn>' }}"), with("x"));
        for (t, typed) in [(&marked, false), (&free, true)] {
            assert_eq!(t.encode("a<start_of_turn>").unwrap().contains(&3), typed);
            assert!(t.encode_with_control("a<start_of_turn>").unwrap().contains(&3));
            assert!(t.encode("a<b>").unwrap().contains(&5));
            // It is no control token: what the model writes is shown.
            assert_eq!(t.decode(&[3]), "<start_of_turn>");
        }
    }

    #[test]
    fn a_byte_without_a_token_is_left_out_and_no_merge_reaches_across_it() {
        let letter = byte_alphabet()[4].to_string();
        let vocabulary = tiny();
        let spec = &vocabulary.tokenizer;
        let mut tokens: Vec<_> =
            spec.tokens.iter().cloned().zip(spec.kinds.iter().copied()).collect();
        tokens[spec.tokens.iter().position(|t| *t == letter).unwrap()].0 = "Ġzz".into();
        let t = Tokenizer::build(&example::byte_bpe(tokens, &["h e"]).unwrap()).unwrap();
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
    fn a_batch_has_the_ids_of_its_texts() {
        for vocabulary in [tiny(), pieces_with_scores(true)] {
            let t = Tokenizer::build(&vocabulary).unwrap();
            let texts = ["user the 12", "", " \n\n x", "ünï"];
            for (ids, text) in t.encode_batch(&texts).into_iter().zip(texts) {
                assert_eq!(ids, t.encode(text));
            }
        }
    }

    #[test]
    fn a_word_of_a_million_characters_is_merged_to_its_end() {
        let t = Tokenizer::build(&pieces_with_scores(true)).unwrap();
        let text = "in".repeat(500_000);
        let ids = t.encode(&text).unwrap();
        assert_eq!((ids.len(), t.decode(&ids) == text), (500_000, true));
    }

    /// A `tokenizer.json` of BPE over bytes or characters, with the steps that the case is about.
    fn file(case: serde_json::Value) -> serde_json::Value {
        use serde_json::json;
        let byte_level = case["byte_level"] == true;
        let fallback = case["byte_fallback"] == true;
        let mut vocab: Vec<String> =
            ["<unk>", "<s>", "</s>", "<tool>", "<r>", "<l>"].map(String::from).to_vec();
        if byte_level {
            vocab.extend(byte_alphabet().iter().map(char::to_string));
        } else {
            if fallback {
                vocab.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
            }
            vocab.extend((0x20..0x7f).map(|b| char::from(b).to_string()));
            vocab.extend(["▁", "\n", "é", "日"].map(String::from));
        }
        let space = if byte_level { "Ġ" } else { "▁" };
        let mut merges = Vec::new();
        for (left, right) in [
            ("t", "h"),
            ("th", "e"),
            ("_", "the"),
            ("_", "_"),
            ("__", "__"),
            ("i", "n"),
            ("_", "in"),
            ("in", "g"),
            ("'", "s"),
            ("1", "2"),
            ("A", "b"),
            ("d", "on"),
            ("o", "n"),
        ] {
            let (left, right) = (left.replace('_', space), right.replace('_', space));
            if !vocab.contains(&right) || !vocab.contains(&left) {
                continue;
            }
            vocab.push(format!("{left}{right}"));
            merges.push(json!([left, right]));
        }
        let vocab: serde_json::Map<_, _> =
            vocab.into_iter().enumerate().map(|(id, text)| (text, json!(id))).collect();
        let added = |id: u32, content: &str, special: bool, left: bool, right: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": left, "rstrip": right, "normalized": false, "special": special});
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<unk>", true, false, false), added(1, "<s>", true, false, false), added(2, "</s>", true, false, false),
                added(3, "<tool>", false, false, false), added(4, "<r>", true, false, true), added(5, "<l>", false, true, false)],
            "normalizer": case["normalizer"], "pre_tokenizer": case["pre_tokenizer"], "post_processor": null, "decoder": case["decoder"],
            "model": {"type": "BPE", "dropout": null, "unk_token": if byte_level { json!(null) } else { json!("<unk>") },
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": case["fuse_unk"] == true,
                "byte_fallback": fallback, "ignore_merges": case["ignore_merges"] == true, "vocab": vocab, "merges": merges},
        })
    }

    /// The shapes of published files.
    fn cases() -> Vec<serde_json::Value> {
        use serde_json::json;
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = |regex: &str| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}, bytes(false)]})
        };
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let spaces = json!({"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let bare = json!({"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]});
        let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        vec![
            json!({"byte_level": true, "pre_tokenizer": bytes(true), "decoder": bytes(true)}),
            json!({"byte_level": true, "pre_tokenizer": split(LLAMA3), "decoder": bytes(true), "ignore_merges": true}),
            json!({"byte_level": true, "normalizer": {"type": "NFC"}, "pre_tokenizer": split(O200K), "decoder": bytes(true)}),
            json!({"byte_level": true, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, "decoder": bytes(true)}),
            json!({"byte_level": true, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "Digits", "individual_digits": false}, bytes(true)]}, "decoder": bytes(true)}),
            // Llama 2, Mistral, TinyLlama.
            json!({"byte_fallback": true, "fuse_unk": true, "decoder": spaces, "normalizer": {"type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}}),
            json!({"byte_fallback": true, "fuse_unk": true, "decoder": spaces, "pre_tokenizer": metaspace("first", false)}),
            json!({"byte_fallback": true, "decoder": spaces, "pre_tokenizer": metaspace("always", true)}),
            json!({"byte_fallback": true, "decoder": bare, "pre_tokenizer": metaspace("never", true)}),
            // Gemma.
            json!({"byte_fallback": true, "fuse_unk": true, "decoder": bare, "normalizer": replace(" ", "▁"),
                "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}}),
            json!({"byte_fallback": true, "decoder": bare, "ignore_merges": true, "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": true, "strip_right": true}, replace(" ", "▁")]}}),
            // Without bytes: unknown characters.
            json!({"fuse_unk": true, "decoder": bare, "normalizer": replace(" ", "▁")}),
            json!({"fuse_unk": false, "decoder": bare, "normalizer": replace(" ", "▁")}),
        ]
    }

    thread_local!(static FILES: Vec<(Tokenizer, tokenizers::Tokenizer)> = cases().into_iter().map(|case| {
        let file = file(case);
        let ours = Tokenizer::build(&example::json(&file).unwrap()).unwrap();
        (ours, tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap())
    }).collect());

    fn as_tokenizers_does(text: &str) {
        FILES.with(|files| {
            for (n, (ours, theirs)) in files.iter().enumerate() {
                let want = theirs.encode(text, false).unwrap();
                let got = ours.encode_with_control(text).unwrap();
                assert_eq!(got, want.get_ids(), "file {n}: {text:?}");
                assert_eq!(
                    ours.decode(&got),
                    theirs.decode(want.get_ids(), true).unwrap(),
                    "file {n}: {text:?}"
                );
                let typed = ours.encode(text).unwrap();
                assert!(
                    typed.iter().all(|&i| !ours.is_control(i))
                        && typed.len() >= ours.least_tokens(text),
                    "file {n}: {text:?}"
                );
            }
        });
    }

    #[test]
    fn files_of_every_shape_give_the_ids_and_texts_of_tokenizers() {
        for text in [
            "",
            " ",
            "  ",
            "the",
            " the  the",
            "the thing's 12 12345",
            "a<s>the</s> the",
            "<s> the<r>  x <l> y<tool> the",
            "x \n\n the\n",
            "é e\u{301} ﬁ Ａ",
            "日本日",
            "本本本x本",
            "DON'T don't",
            "a...!? /// \n/",
            "\t the",
            "<unk>",
            "____",
            "    the",
            "\u{2581}the",
            "<0x0A>",
        ] {
            as_tokenizers_does(text);
        }
    }

    thread_local!(static KINDS: Vec<Tokenizer> =
        [tiny(), pieces_with_scores(true), pieces_with_scores(false)].iter().map(|v| Tokenizer::build(v).unwrap()).collect());

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in any::<String>()) {
            KINDS.with(|kinds| {
                for t in kinds {
                    let ids = t.encode(&text).unwrap();
                    assert!(ids.len() >= t.least_tokens(&text));
                    assert!(ids.iter().all(|&i| !t.is_control(i)));
                    // The sign that stands for a space is one afterwards.
                    let same = if t.spec.escaped_spaces { text.replace(SPACE, " ") } else { text.clone() };
                    assert_eq!(t.decode(&ids), same);
                }
            });
        }

        #[test]
        fn random_texts_have_the_ids_of_tokenizers(
            parts in prop::collection::vec(prop::sample::select(vec!["the", " ", "  ", "in", "ing", "12", "<s>", "<r>", "<l>", "<tool>", "\n", "é", "e\u{301}", "日", "本", "Ab", "'s", "▁", ".", "\u{a0}", "ﬁ"]), 0..14),
        ) {
            as_tokenizers_does(&parts.concat());
        }

        #[test]
        fn growing_text_is_the_text_of_all_bytes(ids in prop::collection::vec(0u32..400, 0..40)) {
            KINDS.with(|kinds| {
                for t in kinds {
                    let bytes: Vec<u8> = ids.iter().flat_map(|&i| t.token_bytes(i).to_vec()).collect();
                    let whole = String::from_utf8_lossy(&bytes).into_owned();
                    let (mut out, mut detokenizer) = (String::new(), t.detokenizer());
                    ids.iter().for_each(|&id| detokenizer.push(id, &mut out));
                    detokenizer.finish(&mut out);
                    assert_eq!(&out, &whole);
                    let space = t.spec.own_space && whole.starts_with(' ');
                    assert_eq!(t.decode(&ids), &whole[usize::from(space)..]);
                }
            });
        }
    }
}
