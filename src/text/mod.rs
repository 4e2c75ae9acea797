//! Text in and out: prompt files, chat template, tokenizer, incremental detokenizer. In: bytes and strings. Out: token ids and strings.
//! Everything here reads strangers' input: files, templates and vocabularies are checked, never believed, and never fail silently.

mod bounded;
mod constraint;
mod date;
mod detokenizer;
mod merging;
mod normalizer;
mod pieces;
mod pretokenizer;
mod prompting;
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
pub use prompting::{Content, PromptError, Prompting, ToEncode};
pub use reasoning::{Marks, ThoughtAtEnd};
pub use rendering::{RenderLimits, Template, TemplateStyle};
pub use row_template::RowTemplate;
pub use template::{ChatTemplate, Message, NEW_TURN, TextSegment, Turn};
pub use tokenizer::{TextError, Tokenizer};
