//! Text in and out: prompt files, chat template, tokenizer, incremental detokenizer. In: bytes and strings. Out: token ids and strings.
//! Everything here reads untrusted input: files, templates and vocabularies are checked, never believed, and never fail silently.

mod constraint;
mod date;
mod detokenizer;
mod merging;
mod metering;
mod normalizer;
mod pieces;
mod pretokenizer;
mod prompt_encoder;
pub mod prompts;
mod reasoning;
mod rendering;
mod row_template;
mod specials;
mod template;
mod tokenizer;

pub use constraint::{Constraint, Grammar, Grammars, Mask, Matching, Words};
pub use date::Date;
pub use detokenizer::Detokenizer;
pub use prompt_encoder::{Content, PromptEncoder, PromptError, ToEncode};
pub use reasoning::{Marks, ThoughtAtEnd};
pub use rendering::{RenderLimits, Template, TemplateStyle};
pub use row_template::RowTemplate;
pub use template::{ChatTemplate, Message, NEW_TURN, TextSegment, Turn};
pub use tokenizer::{TextError, Tokenizer};
