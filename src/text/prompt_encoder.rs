//! The prompt encoder: a model's tokenizer and chat template. In: a model, contents. Out: prompt ids, each at
//! most as long as the context allows. A conversation is tokenized as transformers does it, except that nothing in a content is a control token.

use super::rendering::RenderLimits;
use super::specials::Part;
use super::template::{ChatTemplate, Message, NEW_TURN, TextSegment, Turn};
use super::{Marks, TextError, Tokenizer};
use crate::model::{Model, ModelError, Vocabulary};
use crate::units::TokenId;
use rayon::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a prompt is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Content {
    /// One user message.
    Text(String),
    /// A conversation.
    Messages(Vec<Message>),
    /// Text to be continued, outside any conversation (`/v1/completions`).
    Completion(String),
}

/// A content and how to present it.
#[derive(Debug, Clone, Copy)]
pub struct ToEncode<'a> {
    /// What was written.
    pub content: &'a Content,
    /// A system message, unless the content begins with its own.
    pub system: Option<&'a str>,
    /// No template; control tokens written out in the text are control tokens.
    pub raw: bool,
    /// How a conversation is handed to the template.
    pub turn: &'a Turn,
}

/// Why a prompt has no ids; each is one error record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Too long for the model.
    #[error("the prompt has {}{tokens} tokens; the model takes {limit} with at least one of them for the answer", if *.at_least { "at least " } else { "" })]
    TooLong {
        /// How many; a lower bound if `at_least`.
        tokens: usize,
        /// It was refused before it was tokenized.
        at_least: bool,
        /// Positions of the model.
        limit: usize,
    },
    /// Nothing is left of it.
    #[error("the prompt is empty")]
    Empty,
    /// The chat template refuses the conversation.
    #[error("{0}")]
    Template(String),
    /// Messages, but no template to write them with.
    #[error("{0}")]
    NoTemplate(&'static str),
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl PromptError {
    /// The `code` of the error record.
    pub fn code(&self) -> &'static str {
        match self {
            PromptError::TooLong { .. } => "prompt_too_long",
            PromptError::Empty => "empty_prompt",
            PromptError::Template(_) => "chat_template",
            PromptError::NoTemplate(_) => "no_chat_template",
            PromptError::Text(_) => "tokenizer",
        }
    }
}

/// A model's tokenizer and chat template; used by many threads.
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    vocabulary: Vocabulary,
    context: usize,
    /// Texts that began with BOS and got another.
    doubled_bos: AtomicU64,
}

impl PromptEncoder {
    /// Builds the tokenizer and renders a probe conversation. Errors name the file.
    pub fn new(model: &Model) -> Result<PromptEncoder, ModelError> {
        Self::from_vocabulary(&model.vocabulary, model.spec.context).map_err(|e| e.at(&model.path))
    }

    /// The same without a model; errors name the field only.
    pub fn from_vocabulary(
        vocabulary: &Vocabulary,
        context: usize,
    ) -> Result<PromptEncoder, ModelError> {
        let tokenizer = Tokenizer::build(vocabulary)?;
        let Vocabulary { bos_text, eos_text, template_variables: variables, .. } = vocabulary;
        let template = match &vocabulary.chat_template {
            Some(source) => Some(
                ChatTemplate::compile_with(
                    source,
                    bos_text,
                    eos_text,
                    variables,
                    RenderLimits::default(),
                )
                .map_err(|e| e.within("tokenizer.chat_template"))?,
            ),
            None => None,
        };
        Ok(PromptEncoder {
            tokenizer,
            template,
            vocabulary: vocabulary.clone(),
            context,
            doubled_bos: AtomicU64::new(0),
        })
    }

    /// Whether conversations can be written; a base model has no template, and its prompts are texts to be continued.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// One line that the user should see once if the template asks for the date.
    pub fn date_notice(&self) -> Option<String> {
        self.template.as_ref().and_then(ChatTemplate::date_notice)
    }

    /// How many prompts so far began with BOS as written and got another from the file's rule, as transformers and llama.cpp do it.
    pub fn doubled_bos(&self) -> u64 {
        self.doubled_bos.load(Ordering::Relaxed)
    }

    /// Whether the template takes this system message; asked once, so that `--system` fails before any work.
    pub fn check_system(&self, system: &str) -> Result<(), PromptError> {
        let content = Content::Text("What is the capital of France?".to_string());
        self.ids(
            &self.tokenizer,
            ToEncode { content: &content, system: Some(system), raw: false, turn: &NEW_TURN },
        )
        .map(|_| ())
    }

    /// The marks of thoughts: of a conversation those that the template mentions, of other text those that are tokens.
    pub fn marks(&self, conversation: bool) -> Option<Marks> {
        match (&self.vocabulary.chat_template, conversation) {
            (Some(source), true) => Marks::of_template(source),
            _ => Marks::of_vocabulary(&self.tokenizer),
        }
    }

    /// Whether a prompt is written by the template.
    pub fn is_conversation(&self, prompt: &ToEncode) -> bool {
        self.template.is_some() && !prompt.raw && !matches!(prompt.content, Content::Completion(_))
    }

    /// How a conversation is to be handed to the template so that the model does not think: as it is where the template knows no way.
    /// `None` where the caller asks for a thought.
    pub fn without_thought(&self, turn: &Turn) -> Option<Turn> {
        const SWITCH: &str = "enable_thinking";
        let source = self.vocabulary.chat_template.as_deref().unwrap_or_default();
        let given = turn.variables.as_ref().and_then(|variables| variables.get(SWITCH));
        let given = given.or_else(|| self.vocabulary.template_variables.get(SWITCH));
        if given.is_some_and(|value| *value == serde_json::Value::Bool(true)) {
            return None;
        }
        let mut turn = turn.clone();
        if source.contains(SWITCH) && given.is_none() {
            turn.variables
                .get_or_insert_default()
                .insert(SWITCH.into(), serde_json::Value::Bool(false));
        }
        Some(turn)
    }

    /// Whether the template has a switch for thoughts.
    pub fn can_switch_thoughts(&self) -> bool {
        self.vocabulary
            .chat_template
            .as_deref()
            .is_some_and(|source| source.contains("enable_thinking"))
    }

    /// The token that ends what the assistant says: the template's, that of the model without one.
    pub fn end_of_answer(&self, conversation: bool) -> Option<TokenId> {
        let eos = self.vocabulary.eos.first().copied();
        let Some(template) = self.template.as_ref().filter(|_| conversation) else { return eos };
        let message =
            |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let turn = Turn { generation_prompt: false, ..Turn::default() };
        let segments = template
            .splice_turn(&[message("user", "Say yes."), message("assistant", "Yes.")], &turn);
        let Some(TextSegment::Scaffold(after)) =
            segments.ok().and_then(|mut segments| segments.pop())
        else {
            return eos;
        };
        let first = self.tokenizer.scaffold(&after).into_iter().find_map(|part| match part {
            Part::Token(id) => Some(id),
            Part::Text(_) => None,
        });
        first.or(eos)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The ids of a prompt.
    pub fn prompt_ids(
        &self,
        content: &Content,
        system: Option<&str>,
        raw: bool,
    ) -> Result<Vec<TokenId>, PromptError> {
        self.ids(&self.tokenizer, ToEncode { content, system, raw, turn: &NEW_TURN })
    }

    /// The same with a tokenizer built for this request alone (`TokenizerPolicy::RebuiltPerRequest`).
    pub fn prompt_ids_rebuilt(&self, prompt: ToEncode) -> Result<Vec<TokenId>, PromptError> {
        let tokenizer = Tokenizer::build(&self.vocabulary).map_err(|e| TextError(e.to_string()))?;
        self.ids(&tokenizer, prompt)
    }

    /// Many prompts, on all threads of the current rayon pool.
    pub fn prompt_ids_batch(&self, prompts: &[ToEncode]) -> Vec<Result<Vec<TokenId>, PromptError>> {
        prompts.par_iter().map(|prompt| self.ids(&self.tokenizer, *prompt)).collect()
    }

    fn ids(&self, tokenizer: &Tokenizer, prompt: ToEncode) -> Result<Vec<TokenId>, PromptError> {
        let least = match prompt.content {
            Content::Text(text) | Content::Completion(text) => tokenizer.least_tokens(text),
            Content::Messages(messages) => {
                messages.iter().map(|m| tokenizer.least_tokens(&m.content)).sum()
            }
        };
        if least >= self.context {
            return Err(PromptError::TooLong {
                tokens: least,
                at_least: true,
                limit: self.context,
            });
        }
        let ids = match (prompt.content, &self.template) {
            (Content::Messages(messages), None) if !prompt.raw => {
                return self.one_text(
                    tokenizer,
                    messages,
                    "the model has no chat template to write 'messages' with; give 'prompt'",
                );
            }
            // Without a template roles have no tokens, and contents must not bring control tokens of their own.
            (Content::Messages(_), _) if prompt.raw => {
                return Err(PromptError::NoTemplate(
                    "raw prompts are written without the chat template; give 'prompt' instead of 'messages', or leave --raw out",
                ));
            }
            (Content::Completion(text), _) => self.plain(tokenizer, text, prompt.raw)?,
            (Content::Text(text), _) if prompt.raw => self.plain(tokenizer, text, true)?,
            (Content::Text(text), None) => match prompt.system {
                Some(system) => self.plain(tokenizer, &format!("{system}\n\n{text}"), false)?,
                None => self.plain(tokenizer, text, false)?,
            },
            (content, Some(template)) => {
                let mut messages = match content {
                    Content::Messages(messages) => messages.clone(),
                    Content::Text(text) | Content::Completion(text) => {
                        vec![Message { role: "user".into(), content: text.clone() }]
                    }
                };
                if let Some(system) = prompt.system
                    && messages.first().is_none_or(|m| m.role != "system" && m.role != "developer")
                {
                    messages
                        .insert(0, Message { role: "system".into(), content: system.to_string() });
                }
                self.check_variables(prompt.turn)?;
                let segments =
                    template.splice_turn(&messages, prompt.turn).map_err(PromptError::Template)?;
                conversation(tokenizer, &segments)?
            }
            (Content::Messages(_), None) => return Err(PromptError::Empty),
        };
        self.fitting(ids)
    }

    /// That no text in a request's variables can become a control token, alone or put together by the template: such tokens are
    /// spelled with brackets, bars and the like.
    fn check_variables(&self, turn: &Turn) -> Result<(), PromptError> {
        fn plain(text: &str) -> bool {
            text.chars().all(|c| {
                c.is_alphanumeric() || c.is_whitespace() || "_-.,:;/'\"!?()+*%&@#=".contains(c)
            })
        }
        fn all_plain(value: &serde_json::Value) -> bool {
            match value {
                serde_json::Value::String(text) => plain(text),
                serde_json::Value::Array(many) => many.iter().all(all_plain),
                serde_json::Value::Object(fields) => {
                    fields.iter().all(|(name, value)| plain(name) && all_plain(value))
                }
                _ => true,
            }
        }
        match turn
            .variables
            .iter()
            .flatten()
            .find(|(name, value)| !plain(name) || !all_plain(value))
        {
            Some((name, _)) => Err(PromptError::Template(format!(
                "the variable '{}' has characters that control tokens are spelled with; use letters, digits and plain punctuation",
                crate::units::shown(&name.chars().take(60).collect::<String>())
            ))),
            None => Ok(()),
        }
    }

    /// Messages without a template: only a lone one is a text.
    fn one_text(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        otherwise: &'static str,
    ) -> Result<Vec<TokenId>, PromptError> {
        match messages {
            [only] => self.fitting(self.plain(tokenizer, &only.content, false)?),
            _ => Err(PromptError::NoTemplate(otherwise)),
        }
    }

    /// Text without a template: BOS if the file asks for it.
    fn plain(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        control: bool,
    ) -> Result<Vec<TokenId>, PromptError> {
        let mut ids: Vec<TokenId> =
            self.vocabulary.bos.filter(|_| self.vocabulary.add_bos).into_iter().collect();
        let own = ids.len();
        ids.extend(if control {
            tokenizer.encode_with_control(text)?
        } else {
            tokenizer.encode(text)?
        });
        if own > 0 && ids.get(own) == self.vocabulary.bos.as_ref() {
            self.doubled_bos.fetch_add(1, Ordering::Relaxed);
        }
        Ok(ids)
    }

    fn fitting(&self, ids: Vec<TokenId>) -> Result<Vec<TokenId>, PromptError> {
        match ids.len() {
            0 => Err(PromptError::Empty),
            tokens if tokens >= self.context => {
                Err(PromptError::TooLong { tokens, at_least: false, limit: self.context })
            }
            _ => Ok(ids),
        }
    }
}

/// Ids of a rendered conversation. Control tokens count only in the scaffold; the text between two of them is encoded in one go,
/// scaffold and contents together, so that words at the seams are cut as transformers cuts them. White space that belongs to a
/// token is removed also where a content brings it. User-defined marks of the scaffold are no tokens in a content.
fn conversation(
    tokenizer: &Tokenizer,
    segments: &[TextSegment],
) -> Result<Vec<TokenId>, TextError> {
    let (mut ids, mut run) = (Vec::new(), String::new());
    let cut: Vec<Option<Vec<Part>>> = segments
        .iter()
        .map(|segment| match segment {
            TextSegment::Content(_) => None,
            TextSegment::Scaffold(text) => Some(tokenizer.scaffold(text)),
        })
        .collect();
    let mut marks: Vec<TokenId> = Vec::new();
    for part in cut.iter().flatten().flatten() {
        if let Part::Token(id) = part
            && tokenizer.is_typeable_marker(*id)
            && !marks.contains(id)
        {
            marks.push(*id);
        }
    }
    let mut first = true;
    let mut strip = false;
    let append = |run: &mut String, text: &str, strip: &mut bool| {
        let text = if *strip { text.trim_start() } else { text };
        *strip &= text.is_empty();
        run.push_str(text);
    };
    for (segment, parts) in segments.iter().zip(&cut) {
        match (segment, parts) {
            (TextSegment::Scaffold(_), Some(parts)) => {
                for part in parts {
                    match part {
                        Part::Text(text) => append(&mut run, text, &mut strip),
                        Part::Token(id) => {
                            let (left, right) = tokenizer.strips(*id);
                            if left {
                                run.truncate(run.trim_end().len());
                            }
                            tokenizer.encode_typed(&run, first, &marks, &mut ids);
                            run.clear();
                            ids.push(*id);
                            first = false;
                            strip = right;
                        }
                    }
                }
            }
            (TextSegment::Content(text) | TextSegment::Scaffold(text), _) => {
                append(&mut run, text, &mut strip)
            }
        }
    }
    tokenizer.encode_typed(&run, first, &marks, &mut ids);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::CHATML;
    use super::super::tokenizer::tests::tiny;
    use super::*;
    use proptest::prelude::*;

    fn prompt_encoder(template: Option<&str>, add_bos: bool) -> PromptEncoder {
        let vocabulary =
            Vocabulary { chat_template: template.map(String::from), add_bos, ..tiny() };
        PromptEncoder::from_vocabulary(&vocabulary, 200).unwrap()
    }

    #[test]
    fn conversations_have_their_control_tokens_and_users_have_none() {
        let p = prompt_encoder(Some(CHATML), true);
        let ids =
            p.prompt_ids(&Content::Text("the <|im_end|> 12".into()), Some("sys"), false).unwrap();
        let control: Vec<_> =
            ids.iter().copied().filter(|&i| p.tokenizer().is_control(i)).collect();
        assert_eq!(control, [1, 2, 1, 2, 1]);
        assert_eq!(p.tokenizer().decode(&ids), "system\nsys\nuser\nthe <|im_end|> 12\nassistant\n");
        let own = Content::Messages(vec![
            Message { role: "system".into(), content: "own".into() },
            Message { role: "user".into(), content: "x".into() },
        ]);
        let ids = p.prompt_ids(&own, Some("sys"), false).unwrap();
        assert_eq!(p.tokenizer().decode(&ids), "system\nown\nuser\nx\nassistant\n");
        assert_eq!(
            p.prompt_ids_rebuilt(ToEncode {
                content: &own,
                system: None,
                raw: false,
                turn: &NEW_TURN
            }),
            Ok(ids.clone())
        );
        assert_eq!(
            p.prompt_ids_batch(&[ToEncode {
                content: &own,
                system: None,
                raw: false,
                turn: &NEW_TURN
            }]),
            [Ok(ids)]
        );
    }

    #[test]
    fn variables_that_could_spell_a_control_token_are_refused() {
        let template = format!("{CHATML}{{{{ a | default('') }}}}{{{{ b | default('') }}}}");
        let p = prompt_encoder(Some(&template), false);
        let content = Content::Text("x".into());
        let ids = |json: &str| {
            let turn = Turn { variables: serde_json::from_str(json).unwrap(), ..Turn::default() };
            p.prompt_ids_batch(&[ToEncode {
                content: &content,
                system: None,
                raw: false,
                turn: &turn,
            }])
            .remove(0)
        };
        for bad in [
            r#"{"a": "<|im_", "b": "end|>"}"#,
            r#"{"a": ["<|im_end|>"]}"#,
            r#"{"a": {"<|im_end|>": 1}}"#,
            r#"{"｜": 1}"#,
        ] {
            assert_eq!(ids(bad).unwrap_err().code(), "chat_template", "{bad}");
        }
        assert!(ids(r#"{"a": "26 Jul 2024", "b": false}"#).is_ok());
    }

    #[test]
    fn raw_text_begins_with_bos_only_if_the_file_says_so() {
        let text = Content::Text("<|im_end|>".into());
        assert_eq!(
            prompt_encoder(Some(CHATML), true).prompt_ids(&text, Some("no"), true),
            Ok(vec![1, 2])
        );
        assert_eq!(prompt_encoder(None, false).prompt_ids(&text, None, true), Ok(vec![2]));
        let plain = prompt_encoder(None, true).prompt_ids(&text, None, false).unwrap();
        assert!(plain[0] == 1 && plain[1..].iter().all(|i| *i > 2));
        assert!(
            !prompt_encoder(None, true).has_template()
                && prompt_encoder(Some(CHATML), true).has_template()
        );
        // Text that begins with BOS gets another, and it is counted.
        let twice = prompt_encoder(Some(CHATML), true);
        assert_eq!(
            twice.prompt_ids(&Content::Text("<|im_start|>".into()), None, true),
            Ok(vec![1, 1])
        );
        assert_eq!((twice.doubled_bos(), prompt_encoder(Some(CHATML), true).doubled_bos()), (1, 0));
        let completion = Content::Completion("<|im_end|>".into());
        assert_eq!(
            prompt_encoder(Some(CHATML), true).prompt_ids(&completion, None, false),
            Ok(plain)
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error_with_its_figures() {
        let p = prompt_encoder(Some(CHATML), false);
        let text = |t: String| Content::Text(t);
        let error = p.prompt_ids(&text("x".repeat(300)), None, false).unwrap_err();
        assert_eq!(error.code(), "prompt_too_long");
        assert!(error.to_string().contains("31") && error.to_string().contains("200"), "{error}");
        let error = p.prompt_ids(&text("x".repeat(100_000_000)), None, false).unwrap_err();
        assert!(error.to_string().contains("at least"), "{error}");
        let messages = |roles: &[&str]| {
            Content::Messages(
                roles
                    .iter()
                    .map(|r| Message { role: r.to_string(), content: "x".into() })
                    .collect(),
            )
        };
        assert_eq!(
            p.prompt_ids(&messages(&["user", "user"]), None, true).unwrap_err().code(),
            "no_chat_template"
        );
        // One message alone was not written by somebody who knows the template either.
        assert_eq!(
            p.prompt_ids(&messages(&["user"]), None, true).unwrap_err().code(),
            "no_chat_template"
        );
        assert!(prompt_encoder(None, false).prompt_ids(&messages(&["user"]), None, false).is_ok());
        assert_eq!(
            prompt_encoder(None, false)
                .prompt_ids(&messages(&["a", "b"]), None, false)
                .unwrap_err()
                .code(),
            "no_chat_template"
        );
        assert_eq!(
            prompt_encoder(None, false).prompt_ids(&text(String::new()), None, false),
            Err(PromptError::Empty)
        );
        assert_eq!(
            p.prompt_ids(&messages(&["<|im_start|>"]), None, false).unwrap_err().code(),
            "chat_template"
        );
        let strict = prompt_encoder(
            Some(&format!(
                "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no system') }}}}{{% endif %}}{CHATML}"
            )),
            false,
        );
        assert!(strict.check_system("x").unwrap_err().to_string().contains("no system"));
        assert!(p.check_system("x").is_ok());
    }

    #[test]
    fn a_bad_template_is_an_invalid_model() {
        let vocabulary =
            Vocabulary { chat_template: Some("{{ messages[0].role }}".into()), ..tiny() };
        let Err(ModelError::Invalid(message)) = PromptEncoder::from_vocabulary(&vocabulary, 200)
        else {
            panic!("accepted")
        };
        assert!(message.contains("chat_template") && message.contains("leaves out"), "{message}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]
        /// Control texts cut up and put together again anywhere in a conversation: the control tokens are the template's, always.
        #[test]
        fn no_splice_of_control_texts_becomes_a_control_token(
            parts in prop::collection::vec(prop::sample::select(vec!["<|im_start|>", "<|im_end|>", "<|im_", "start|>", "end|>", "<|", "|>", "user\n", "\n", " ", "x", "é", "<|endoftext|>", "{{ bos_token }}"]), 0..12),
            cut in 0usize..12,
        ) {
            thread_local!(static PROMPTING: PromptEncoder = prompt_encoder(Some(CHATML), false));
            PROMPTING.with(|p| {
                let cut = cut.min(parts.len());
                let message = |role: &str, parts: &[&str]| Message { role: role.into(), content: parts.concat() };
                let content = Content::Messages(vec![message("user", &parts[..cut]), message("assistant", &parts[cut..])]);
                let ids = p.prompt_ids(&content, None, false).unwrap();
                let control: Vec<_> = ids.iter().copied().filter(|&i| p.tokenizer().is_control(i)).collect();
                assert_eq!(control, [1, 2, 1, 2, 1]);
                let text = format!("user\n{}\nassistant\n{}\nassistant\n", parts[..cut].concat(), parts[cut..].concat());
                assert_eq!(p.tokenizer().decode(&ids), text);
            });
        }

        /// The same of SentencePiece, whose mark of a turn is a user-defined token here.
        #[test]
        fn no_splice_of_marks_becomes_one_in_pieces_with_scores(
            parts in prop::collection::vec(prop::sample::select(vec!["<start_of_turn>", "<end_of_turn>", "<start", "_of", "_turn>", "_turn", "<s>", "</s>", "<", "s>", ">", "</", "<b>", "user\n", "\n", " ", "▁", "é", "日"]), 0..12),
            cut in 0usize..12,
        ) {
            const TURNS: &str = "{% for message in messages %}{{'<start_of_turn>' + message['role'] + '\n' + message['content'] + '<end_of_turn>\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}";
            thread_local!(static PROMPTING: [PromptEncoder; 2] = [true, false].map(|space| {
                let vocabulary = Vocabulary { chat_template: Some(TURNS.into()), ..super::super::tokenizer::tests::pieces_with_scores(space) };
                PromptEncoder::from_vocabulary(&vocabulary, 2000).unwrap()
            }));
            PROMPTING.with(|both| {
                let cut = cut.min(parts.len());
                let message = |role: &str, parts: &[&str]| Message { role: role.into(), content: parts.concat() };
                let content = Content::Messages(vec![message("user", &parts[..cut]), message("user", &parts[cut..])]);
                for p in both {
                    let ids = p.prompt_ids(&content, None, false).unwrap();
                    let special: Vec<_> = ids.iter().copied().filter(|&i| i == 3 || p.tokenizer().is_control(i)).collect();
                    assert_eq!(special, [3, 4, 3, 4, 3]);
                    // Building takes most of the time: one case in a dozen.
                    if parts.is_empty() {
                        assert_eq!(p.prompt_ids_rebuilt(ToEncode { content: &content, system: None, raw: false, turn: &NEW_TURN }), Ok(ids));
                    }
                }
            });
        }
    }
}
