//! What an output line says of an answer besides its text, as JSON: the parsed value, probabilities of choices, log probabilities, OpenAI's
//! list of choices.
// Answers hold whatever a model says.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

use crate::engine::FinishReason;
use crate::pipeline::{Answer, TokenLogprob};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The code of an answer that was cut before it had its form: an error whose text so far is shown.
pub const INCOMPLETE: &str = "incomplete";

/// The answer's text where there is any: also of one that was cut.
pub fn text(answer: &Answer) -> Option<&str> {
    answer
        .error
        .as_ref()
        .is_none_or(|error| error.code == INCOMPLETE)
        .then_some(answer.text.as_str())
}

/// The value of an answer that had to be JSON, as the model wrote it.
pub fn parsed(answer: &Answer) -> Option<&RawValue> {
    if answer.json && answer.error.is_none() {
        serde_json::from_str(&answer.text).ok()
    } else {
        None
    }
}

/// The value of one property of such an answer: text as it is, the rest as JSON text; `None` where there is none.
pub fn property(answer: &Answer, name: &str) -> Option<String> {
    property_of(parsed(answer)?.get(), name)
}

/// The same of JSON text.
pub fn property_of(json: &str, name: &str) -> Option<String> {
    let fields: Map<String, Value> = serde_json::from_str(json).ok()?;
    match fields.get(name)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// An object: each choice with its probability.
pub fn choice_probs(answer: &Answer) -> Option<Value> {
    let probs = answer.choice_probs.as_ref()?;
    Some(Value::Object(
        probs.iter().map(|(text, probability)| (text.clone(), json!(probability))).collect(),
    ))
}

/// A list: each token with the best of its place.
pub fn logprobs(answer: &Answer) -> Option<Value> {
    answer.logprobs.as_ref().map(|all| list(all, "top"))
}

fn list(all: &[TokenLogprob], top: &str) -> Value {
    let one = |one: &TokenLogprob| json!({"token": one.token, "bytes": one.bytes, "logprob": one.logprob});
    let with_top = |t: &TokenLogprob| {
        let mut value = one(t);
        if let Value::Object(fields) = &mut value {
            fields.insert(top.to_string(), t.top.iter().map(one).collect());
        }
        value
    };
    all.iter().map(with_top).collect()
}

/// Log probabilities as `/v1/chat/completions` has them.
fn chat_logprobs(all: Option<&Vec<TokenLogprob>>) -> Value {
    all.map_or(Value::Null, |all| json!({"content": list(all, "top_logprobs"), "refusal": null}))
}

/// Log probabilities as `/v1/completions` has them. Equal spellings of different tokens keep the more probable one.
fn completion_logprobs(all: Option<&Vec<TokenLogprob>>) -> Value {
    let Some(all) = all else { return Value::Null };
    let mut offset = 0;
    let offsets: Vec<usize> = all
        .iter()
        .map(|one| {
            let at = offset;
            offset += one.token.chars().count();
            at
        })
        .collect();
    let top = |one: &TokenLogprob| {
        let mut best = Map::new();
        for other in &one.top {
            best.entry(other.token.clone()).or_insert_with(|| json!(other.logprob));
        }
        Value::Object(best)
    };
    json!({
        "tokens": all.iter().map(|one| &one.token).collect::<Vec<_>>(),
        "token_logprobs": all.iter().map(|one| one.logprob).collect::<Vec<_>>(),
        "top_logprobs": all.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// OpenAI's `choices` of an answer; `chat` says which endpoint was asked.
pub fn open_ai_choices(answer: &Answer, chat: bool) -> Value {
    // OpenAI knows two ends: the model's or the caller's, and one that something cut.
    let reason = |reason: FinishReason| match reason {
        FinishReason::Stop | FinishReason::StopString | FinishReason::Choice => "stop",
        FinishReason::Length
        | FinishReason::Sentence
        | FinishReason::Loop
        | FinishReason::Error => "length",
    };
    let choice = |index: usize,
                  text: &str,
                  reasoning: Option<&String>,
                  all: Option<&Vec<TokenLogprob>>,
                  end: FinishReason| {
        if !chat {
            return json!({"index": index, "text": text, "logprobs": completion_logprobs(all), "finish_reason": reason(end)});
        }
        let mut message = json!({"role": "assistant", "content": text});
        if let (Value::Object(fields), Some(reasoning)) = (&mut message, reasoning) {
            fields.insert("reasoning_content".into(), json!(reasoning));
        }
        json!({"index": index, "message": message, "logprobs": chat_logprobs(all), "finish_reason": reason(end)})
    };
    let first = choice(
        0,
        &answer.text,
        answer.reasoning.as_ref(),
        answer.logprobs.as_ref(),
        answer.finish_reason,
    );
    let more = answer.more.iter().enumerate().map(|(i, other)| {
        choice(
            i + 1,
            &other.text,
            other.reasoning.as_ref(),
            other.logprobs.as_ref(),
            other.finish_reason,
        )
    });
    std::iter::once(first).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::answer;
    use super::*;
    use crate::pipeline::{Alternative, RecordError};

    fn scored() -> Vec<TokenLogprob> {
        let one = |token: &str, logprob: f32, top: Vec<TokenLogprob>| TokenLogprob {
            token: token.into(),
            bytes: token.as_bytes().to_vec(),
            logprob,
            top,
        };
        vec![
            one("é", -0.5, vec![one("é", -0.5, vec![]), one("a", -1.5, vec![])]),
            one("b", -0.25, vec![]),
        ]
    }

    #[test]
    fn a_json_answer_is_told_parsed_property_by_property_and_an_incomplete_one_is_not() {
        let mut a = answer("1", r#"{"a":"x\ny","b":[1,2.50],"c":null}"#);
        assert!(parsed(&a).is_none(), "it did not have to be JSON");
        a.json = true;
        assert_eq!(parsed(&a).unwrap().get(), a.text, "as it was written");
        let of = |name: &str| property(&a, name);
        assert_eq!(
            (of("a"), of("b"), of("c"), of("d")),
            (Some("x\ny".into()), Some("[1,2.5]".into()), None, None)
        );
        a.error = Some(RecordError::new(INCOMPLETE, "cut"));
        assert!(parsed(&a).is_none() && text(&a) == Some(a.text.as_str()));
        a.error = Some(RecordError::new("not_finite", "x"));
        assert_eq!(text(&a), None);
    }

    #[test]
    fn openai_choices_have_logprobs_reasoning_and_ends_of_their_own() {
        let mut a = answer("1", "x");
        a.logprobs = Some(scored());
        a.reasoning = Some("hm".into());
        a.more = vec![Alternative {
            text: "y".into(),
            reasoning: None,
            finish_reason: FinishReason::Length,
            logprobs: None,
        }];
        let chat = open_ai_choices(&a, true);
        assert_eq!(
            chat[0]["message"],
            json!({"role": "assistant", "content": "x", "reasoning_content": "hm"})
        );
        let first = &chat[0]["logprobs"]["content"][0];
        assert_eq!(
            *first,
            json!({"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": [
            {"token": "é", "bytes": [195, 169], "logprob": -0.5}, {"token": "a", "bytes": [97], "logprob": -1.5}]})
        );
        assert_eq!(
            chat[1],
            json!({"index": 1, "message": {"role": "assistant", "content": "y"}, "logprobs": null, "finish_reason": "length"})
        );
        let plain = open_ai_choices(&a, false);
        assert_eq!(
            plain[0]["logprobs"],
            json!({"tokens": ["é", "b"], "token_logprobs": [-0.5, -0.25],
            "top_logprobs": [{"é": -0.5, "a": -1.5}, {}], "text_offset": [0, 1]})
        );
        assert_eq!(logprobs(&a).unwrap()[0]["top"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn probabilities_stand_by_the_text_of_their_choice() {
        let mut a = answer("1", "yes");
        a.choice_probs = Some(vec![("yes".into(), 0.75), ("no".into(), 0.25)]);
        assert_eq!(choice_probs(&a).unwrap().to_string(), r#"{"yes":0.75,"no":0.25}"#);
    }
}
