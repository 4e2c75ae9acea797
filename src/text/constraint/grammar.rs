//! Grammars over a model's tokens. One [`Grammars`] for each model: a trie of the vocabulary and the crate's factory, made when the first
//! constraint is used, and the grammars compiled so far, bounded. Each answer has a [`Matching`] of its own with its own lexer, so that
//! what it may do, limits included, depends on nobody else.
// Untrusted input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use super::{Constraint, schema};
use crate::units::{TokenId, shown};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{
    InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv,
};
use llguidance::{Matcher, ParserFactory};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Compiled grammars kept.
const MAX_GRAMMARS: usize = 64;
/// Bytes of a regular expression or a Lark grammar.
const MAX_LENGTH: usize = 1 << 20;
/// Brackets inside one another, in what is compiled by recursion.
const MAX_DEPTH: usize = 250;
/// Stack of the thread that compiles: reserved, touched only as used.
const STACK: usize = 256 << 20;

/// What a grammar may cost. The crate counts work, not time, so that one request has one outcome on every machine.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // 1 to 2 kB each, for every answer under way.
        max_lexer_states: 20_000,
        max_grammar_size: 500_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Text to ids.
pub type EncodeText = Box<dyn Fn(&str) -> Vec<TokenId> + Send + Sync>;

/// The vocabulary as the crate sees it.
struct Env {
    trie: TokTrie,
    encode: EncodeText,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The ids that the tokenizer gives to text in the middle of a text; where it would change the text, or for bytes that are none, the
    /// longest tokens first.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let ids = (self.encode)(text);
            if self.trie.decode_raw(&ids) == bytes {
                return ids;
            }
        }
        self.trie.greedy_tokenize(bytes)
    }
}

type Key = [u8; 32];
type Compiled = Result<Arc<Grammar>, String>;

/// See the module's head.
pub struct Grammars {
    /// Makes the tokens' bytes and the encoder.
    vocabulary: Box<dyn Fn() -> Words + Send + Sync>,
    factory: OnceLock<Result<ParserFactory, String>>,
    compiled: Mutex<Cache>,
    /// How often something was compiled.
    compilations: AtomicU64,
}

/// A vocabulary for grammars.
pub struct Words {
    /// Each token's bytes; empty for those that no text consists of.
    pub bytes: Vec<Vec<u8>>,
    /// Tokens that end an answer.
    pub eos: Vec<TokenId>,
    /// The ids of text that goes on where other text ended.
    pub encode: EncodeText,
}

#[derive(Default)]
struct Cache {
    entries: HashMap<Key, (Arc<OnceLock<Compiled>>, u64)>,
    by_age: BTreeMap<u64, Key>,
    clock: u64,
}

impl Cache {
    /// The place of a grammar, which becomes the youngest.
    fn place(&mut self, key: Key) -> Arc<OnceLock<Compiled>> {
        self.clock += 1;
        let (place, used) = self.entries.entry(key).or_insert_with(|| (Arc::default(), 0));
        self.by_age.remove(used);
        *used = self.clock;
        self.by_age.insert(self.clock, key);
        let place = place.clone();
        while self.entries.len() > MAX_GRAMMARS
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.entries.remove(&oldest);
        }
        place
    }
}

impl Grammars {
    /// For a vocabulary that is asked for when the first constraint is used.
    pub fn new(vocabulary: impl Fn() -> Words + Send + Sync + 'static) -> Grammars {
        let (factory, compiled, compilations) = Default::default();
        Grammars { vocabulary: Box::new(vocabulary), factory, compiled, compilations }
    }

    /// How often something was compiled so far, with success or without.
    pub fn compilations(&self) -> u64 {
        self.compilations.load(Ordering::Relaxed)
    }

    /// The grammar of a constraint, compiled now if it is not yet; failures are kept like successes. The error is one line.
    pub fn compile(&self, constraint: &Constraint) -> Result<Arc<Grammar>, String> {
        let mut sha = Sha256::new();
        sha.update(format!("{constraint:?}").as_bytes());
        let key: Key = sha.finalize().into();
        let place = self.compiled.lock().unwrap_or_else(PoisonError::into_inner).place(key);
        // Whoever else asks for the same one waits for it.
        place.get_or_init(|| self.compile_anew(constraint, key)).clone()
    }

    fn factory(&self) -> Result<&ParserFactory, String> {
        let factory = self.factory.get_or_init(|| {
            let Words { mut bytes, eos, encode } = (self.vocabulary)();
            // What begins so means a special token to the crate; it is no text anyway.
            bytes
                .iter_mut()
                .filter(|b| b.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER))
                .for_each(Vec::clear);
            let Some(first) =
                eos.first().copied().filter(|_| eos.iter().all(|id| (*id as usize) < bytes.len()))
            else {
                return Err(
                    "the model has no end-of-sequence token, without which no grammar can end"
                        .to_string(),
                );
            };
            let trie = TokTrie::from(&TokRxInfo::new(bytes.len() as u32, first), &bytes)
                .with_eos_tokens(&eos);
            let env: TokEnv = Arc::new(Env { trie, encode });
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(
                &env,
                InferenceCapabilities { ff_tokens: true, ..Default::default() },
                &slices,
            )
            .map_err(|e| {
                format!("the vocabulary cannot be used for grammars: {}", line(&e.to_string()))
            })?;
            factory.quiet();
            *factory.limits_mut() = limits();
            Ok(factory)
        });
        factory.as_ref().map_err(Clone::clone)
    }

    fn compile_anew(&self, constraint: &Constraint, digest: Key) -> Compiled {
        self.compilations.fetch_add(1, Ordering::Relaxed);
        let grammar = source(constraint)?;
        let factory = self.factory()?;
        let compile = || {
            let mut matcher = Matcher::new(factory.create_parser(grammar));
            match matcher.get_error() {
                Some(error) => Err(line(&error)),
                // A grammar that nothing satisfies, or that is too large to begin with, is told now.
                None => match matcher.deep_clone().compute_mask_or_eos() {
                    Err(error) => Err(line(&error.to_string())),
                    Ok(_) if matcher.is_stopped() && !matcher.is_accepting().unwrap_or(false) => {
                        Err("nothing satisfies it".to_string())
                    }
                    Ok(_) => Ok(matcher),
                },
            }
        };
        let matcher = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".to_string()).stack_size(STACK);
            match thread.spawn_scoped(scope, compile) {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|_| Err("compiling it failed".to_string()))
                }
                Err(e) => Err(format!("no thread can be started to compile it: {e}")),
            }
        });
        let what = match constraint {
            Constraint::Schema(_) | Constraint::Object => "the schema",
            Constraint::Regex(_) => "the regular expression",
            Constraint::Lark(_) => "the grammar",
            Constraint::OneOf(_) => "the choice",
        };
        let matcher = matcher.map_err(|error| format!("{what} cannot be enforced: {error}"))?;
        let eos = factory.tok_env().tok_trie().eos_tokens().into();
        Ok(Arc::new(Grammar {
            pristine: Mutex::new(matcher),
            eos,
            digest,
            is_json: constraint.is_json(),
        }))
    }
}

/// What the crate compiles.
fn source(constraint: &Constraint) -> Result<TopLevelGrammar, String> {
    Ok(match constraint {
        Constraint::Schema(text) => TopLevelGrammar::from_json_schema(schema::prepare(text)?),
        Constraint::Object => {
            TopLevelGrammar::from_json_schema(schema::prepare("{\"type\": \"object\"}")?)
        }
        Constraint::Regex(text) => {
            bounded("the regular expression", text)?;
            // The crate's reader drops a lone backslash at the end.
            let escapes = text.len() - text.trim_end_matches('\\').len();
            if text.is_empty() || escapes % 2 == 1 {
                return Err(
                    "the regular expression is empty or ends in the middle of an escape".into()
                );
            }
            TopLevelGrammar::from_regex(text)
        }
        Constraint::Lark(text) => {
            bounded("the grammar", text)?;
            for (word, instead) in [
                ("%json", "give a JSON schema as such"),
                ("allow_invalid_utf8", "answers are text"),
            ] {
                if text.contains(word) {
                    return Err(format!(
                        "the grammar has '{word}', which is not supported: {instead}"
                    ));
                }
            }
            TopLevelGrammar::from_lark(text.clone())
        }
        Constraint::OneOf(texts) => {
            if texts.is_empty() || texts.iter().any(String::is_empty) {
                return Err("a choice is among texts that are not empty".into());
            }
            let texts: Vec<String> =
                texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            bounded("the choice", &texts.concat())?;
            TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
        }
    })
}

use serde_json::Value;

/// Texts whose length and brackets no recursion of the crate exhausts.
fn bounded(what: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("{what} has {} bytes; the limit is {MAX_LENGTH}", text.len()));
    }
    let (mut depth, mut deepest) = (0usize, 0usize);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_DEPTH {
        return Err(format!("{what} has brackets more than {MAX_DEPTH} deep in one another"));
    }
    Ok(())
}

/// The first line of an error of the crate, in words that fit here.
fn line(error: &str) -> String {
    let first = error
        .lines()
        .map(str::trim)
        .find(|l| !l.is_empty() && !l.starts_with('<'))
        .unwrap_or("it is not understood");
    if first.starts_with("oneOf constraints are not supported") {
        return "'oneOf' has alternatives that may both fit one value; say 'anyOf'".to_string();
    }
    // The words of its inside.
    match first {
        "NoExtensionBias" => {
            return "no text satisfies it: it is a circle without an end, or forbids every beginning".to_string();
        }
        _ if first.contains("missing special token prefix") => {
            return "it names tokens, such as <|im_end|>; a grammar here is one of text, and ends by itself".to_string();
        }
        _ => {}
    }
    // A regular expression's reader says where on the first line, and what on the last.
    let what = error
        .lines()
        .rev()
        .find_map(|l| l.trim().strip_prefix("error: "))
        .filter(|_| first.ends_with(':'));
    let first: String = first.chars().take(300).collect();
    shown(&what.map_or(first.clone(), |what| format!("{first} {what}"))).to_string()
}

/// A compiled constraint, shared by all records that have it.
pub struct Grammar {
    /// Before any token; never advanced.
    pristine: Mutex<Matcher>,
    eos: Arc<[TokenId]>,
    digest: Key,
    is_json: bool,
}

impl Grammar {
    /// At the beginning of an answer.
    pub fn start(&self) -> Matching {
        let matcher = self.pristine.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Matching { matcher, eos: self.eos.clone() }
    }

    /// SHA-256 of what was asked for.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Whether answers are JSON.
    pub fn is_json(&self) -> bool {
        self.is_json
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Grammar) -> bool {
        self.digest == other.digest
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Grammar({:02x}{:02x}…)",
            self.digest.first().unwrap_or(&0),
            self.digest.get(1).unwrap_or(&0)
        )
    }
}

/// A set of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask(SimpleVob);

impl Mask {
    /// These tokens of a vocabulary of `size`.
    pub fn of(size: usize, tokens: &[TokenId]) -> Mask {
        let mut mask = Mask(SimpleVob::alloc(size));
        tokens.iter().for_each(|token| mask.allow(*token));
        mask
    }

    /// Whether this token is in it; ids past its end are not.
    pub fn allows(&self, token: TokenId) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }

    /// Adds a token of the vocabulary.
    pub fn allow(&mut self, token: TokenId) {
        if (token as usize) < self.0.len() {
            self.0.allow_token(token);
        }
    }

    /// 32 tokens a word, the lowest id in the lowest bit.
    pub fn words(&self) -> &[u32] {
        self.0.as_slice()
    }

    /// How many tokens.
    pub fn count(&self) -> usize {
        self.0.num_set()
    }
}

/// Where an answer stands in its grammar.
pub struct Matching {
    matcher: Matcher,
    /// Tokens that end an answer.
    eos: Arc<[TokenId]>,
}

impl Matching {
    /// The tokens that may come next: one alone where the grammar forces text, spelled as the tokenizer spells it. The error is one line.
    pub fn mask(&mut self) -> Result<Mask, String> {
        self.matcher.compute_mask_or_eos().map(Mask).map_err(|e| line(&e.to_string()))
    }

    /// Whether the mask has this token, where one token is told without making the mask of all: `None` where the grammar forces text, has
    /// ended, or where the token ends an answer. Looking does not change anything.
    pub fn allows(&mut self, token: TokenId) -> Option<bool> {
        if self.matcher.is_stopped()
            || self.eos.contains(&token)
            || !self.matcher.compute_ff_bytes().is_empty()
        {
            return None;
        }
        self.matcher.validate_tokens(&[token]).ok().map(|valid| valid == 1)
    }

    /// The token that must come next, if there is only one: the mask's single token. Looking does not change anything.
    pub fn forced(&mut self) -> Option<TokenId> {
        if self.matcher.is_stopped() {
            None
        } else {
            self.matcher.compute_ff_tokens().first().copied()
        }
    }

    /// Goes on by a token of the mask.
    pub fn consume(&mut self, token: TokenId) -> Result<(), String> {
        self.matcher.consume_token(token).map_err(|e| line(&e.to_string()))
    }

    /// Goes on by as many of these tokens as fit; how many.
    pub fn consume_all(&mut self, tokens: &[TokenId]) -> Result<usize, String> {
        self.matcher.try_consume_tokens(tokens).map_err(|e| line(&e.to_string()))
    }

    /// The answer is complete, and nothing can follow.
    pub fn has_ended(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    /// The answer would be complete if it ended here.
    pub fn is_complete(&mut self) -> bool {
        self.has_ended() || self.matcher.is_accepting().unwrap_or(false)
    }
}
