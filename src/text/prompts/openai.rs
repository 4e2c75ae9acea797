//! An OpenAI Batch API request to a record: `custom_id`, `method`, `url`, `body`. The fields of body and messages are an allow-list:
//! whatever is not on it could change the answer, and is refused by its name, never ignored.

use super::fault::Fault;
use super::fields::GenerationFields;
use super::json::{Extra, Fields, check_turn, messages};
use super::record::{
    Endpoint, OpenAiRequest, OriginalPrompt, Parsed, PromptRequest, Warnings, prompt,
};
use crate::text::Content;
use crate::units::shown;
use serde_json::Value;

/// Settings that mean what the flag of that name means.
const SETTINGS: [&str; 12] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "response_format",
    "structured_outputs",
];
/// Log probabilities: a number for completions, a switch and a number for conversations.
const LOGPROBS: [&str; 2] = ["logprobs", "top_logprobs"];
/// Settings of a conversation only.
const TURN: [&str; 3] = ["continue_final_message", "add_generation_prompt", "chat_template_kwargs"];
/// Fields that never change an answer.
const INERT: [&str; 7] =
    ["model", "user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls"];
/// Fields taken at the one value that does nothing (`null` does nothing anywhere).
const IDLE: [(&str, &str); 8] = [
    ("tools", "[]"),
    ("logit_bias", "{}"),
    ("stream", "false"),
    ("echo", "false"),
    ("best_of", "1"),
    ("ignore_eos", "false"),
    ("tool_calls", "[]"),
    ("top_logprobs", "0"),
];

/// A request's text.
pub(super) fn read(text: &str, warnings: &mut Warnings) -> Parsed {
    let fields = match Fields::of(text) {
        Ok(fields) => fields,
        Err((code, message)) => return Parsed::bad(code, message),
    };
    let (id, id_fault) = match fields.text("custom_id") {
        Ok(Some(id)) => (Some(id), None),
        Ok(None) => (None, Some(("bad_field", "custom_id is missing".to_string()))),
        Err(fault) => (None, Some(fault)),
    };
    let digest = OpenAiRequest::digest_of(text.trim());
    let mut request = OpenAiRequest { endpoint: Endpoint::Chat, model: None, digest };
    let mut usable = false;
    let asked = ask(&fields, &mut usable, &mut request, warnings);
    Parsed {
        id,
        id_is_number: false,
        prompt: OriginalPrompt::OpenAi(Box::new(request)),
        carried: Vec::new(),
        input: None,
        request: id_fault.map_or(asked, Err),
        usable,
        below: None,
    }
}

/// What a URL asks for: a path with or without `/v1`, a whole address, Azure's path of a deployment.
fn endpoint(url: &str) -> Option<Endpoint> {
    let address = url.split(['?', '#']).next().unwrap_or_default();
    let (path, whole) = match address.split_once("://") {
        None => (address, false),
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") =>
        {
            (rest.find('/').and_then(|at| rest.get(at..))?, true)
        }
        Some(_) => return None,
    };
    let path = path.trim_end_matches('/');
    let (before, endpoint) = match path.strip_suffix("/chat/completions") {
        Some(before) => (before, Endpoint::Chat),
        None => (path.strip_suffix("/completions")?, Endpoint::Completions),
    };
    let parts: Vec<&str> = before.split('/').collect();
    let known = match &parts[..] {
        [""] | ["", "v1"] | ["", "openai", "v1"] | ["", "openai", "deployments", _] => true,
        [.., "v1"] => whole,
        _ => false,
    };
    known.then_some(endpoint)
}

fn ask(
    fields: &Fields,
    usable: &mut bool,
    request: &mut OpenAiRequest,
    warnings: &mut Warnings,
) -> Result<PromptRequest, Fault> {
    let refuse = |message: String| Err(("unsupported", message));
    request.endpoint = match fields.text("url")?.as_deref().map(endpoint) {
        Some(Some(endpoint)) => endpoint,
        Some(None) => {
            return refuse(
                "url: only /v1/chat/completions and /v1/completions are supported".to_string(),
            );
        }
        None => return Err(("bad_field", "url is missing".to_string())),
    };
    match fields.text("method")? {
        Some(method) if method.eq_ignore_ascii_case("POST") => {}
        Some(_) => return refuse("method: only POST is supported".to_string()),
        None => return Err(("bad_field", "method is missing".to_string())),
    }
    for (name, _) in &fields.0 {
        if !matches!(&**name, "custom_id" | "method" | "url" | "body") {
            warnings.unknown_field(name);
        }
    }
    let Some(body) = fields.get("body")? else {
        return Err(("bad_field", "body is missing".to_string()));
    };
    let body =
        Fields::of(body.get()).map_err(|(_, message)| ("bad_field", format!("body: {message}")))?;
    request.model = body.text("model")?;
    let content = content(&body, usable, request.endpoint)?;
    allowed(&body, request.endpoint)?;
    let generation = generation(&body, request.endpoint)?;
    check_turn(&content, &generation)?;
    Ok(PromptRequest { content, generation })
}

fn content(body: &Fields, usable: &mut bool, endpoint: Endpoint) -> Result<Content, Fault> {
    if endpoint == Endpoint::Chat {
        let Some(raw) = body.get("messages")? else {
            return Err(("missing_prompt", "body.messages is missing".to_string()));
        };
        *usable = true;
        return messages(raw, Extra::Refused);
    }
    let text = match body.value("prompt")? {
        Some(Value::String(text)) => text,
        Some(Value::Array(many)) if matches!(&many[..], [Value::String(_)]) => many
            .into_iter()
            .find_map(|text| if let Value::String(text) = text { Some(text) } else { None })
            .unwrap_or_default(),
        Some(_) => {
            *usable = true;
            return Err(("unsupported", "prompt: only one string is supported".to_string()));
        }
        None => return Err(("missing_prompt", "body.prompt is missing".to_string())),
    };
    *usable = true;
    Ok(match prompt(&text)? {
        Content::Text(text) => Content::Completion(text),
        other => other,
    })
}

/// That every field of a body is one whose meaning is kept.
fn allowed(body: &Fields, endpoint: Endpoint) -> Result<(), Fault> {
    let chat = endpoint == Endpoint::Chat;
    for (name, raw) in &body.0 {
        let name = &**name;
        let known = SETTINGS.contains(&name)
            || INERT.contains(&name)
            || matches!(name, "max_tokens" | "max_completion_tokens")
            || name == if chat { "messages" } else { "prompt" }
            || (chat && (TURN.contains(&name) || LOGPROBS.contains(&name)))
            || name == "logprobs";
        if known || raw.get() == "null" {
            continue;
        }
        let short = shown(&name.chars().take(60).collect::<String>());
        let Some((_, usual)) = IDLE.iter().find(|(n, _)| *n == name) else {
            return Err(("unsupported", format!("{short}: this field is not supported")));
        };
        let value: Value = serde_json::from_str(raw.get()).unwrap_or_default();
        let nothing: Value = serde_json::from_str(usual).unwrap_or_default();
        let same = value == nothing || (value.is_number() && value.as_f64() == nothing.as_f64());
        if !same {
            return Err((
                "unsupported",
                format!("{short}: this value is not supported, only {usual}"),
            ));
        }
    }
    Ok(())
}

fn generation(body: &Fields, endpoint: Endpoint) -> Result<GenerationFields, Fault> {
    let mut generation = GenerationFields::default();
    for name in SETTINGS.into_iter().chain(TURN.into_iter().filter(|_| endpoint == Endpoint::Chat))
    {
        let Some(value) = body.value(name)? else { continue };
        match (name, value.as_i64().filter(|n| *n < 0)) {
            // As vLLM has it: off.
            ("top_k", Some(-1)) => generation.top_k = Some(0),
            // Any 64 bits are a key.
            ("seed", Some(seed)) => generation.seed = Some(seed as u64),
            _ => generation.set(name, &value)?,
        }
    }
    generation.logprobs = logprobs(body, endpoint)?;
    for name in ["max_tokens", "max_completion_tokens"] {
        let Some(value) = body.value(name)? else { continue };
        let before = generation.max_tokens;
        generation
            .set("max_tokens", &value)
            .map_err(|(code, message)| (code, message.replacen("max_tokens", name, 1)))?;
        if before.is_some() && before != generation.max_tokens {
            return Err((
                "bad_field",
                "max_tokens and max_completion_tokens differ; give one".to_string(),
            ));
        }
    }
    Ok(generation)
}

/// How many alternatives are wanted with log probabilities, if those are.
fn logprobs(body: &Fields, endpoint: Endpoint) -> Result<Option<usize>, Fault> {
    let mut number = GenerationFields::default();
    let (asked, top) = (
        body.value("logprobs")?.filter(|v| !v.is_null()),
        body.value("top_logprobs")?.filter(|v| !v.is_null()),
    );
    if endpoint == Endpoint::Completions {
        return match asked {
            None | Some(Value::Bool(false)) => Ok(None),
            Some(value) => number.set("logprobs", &value).map(|()| number.logprobs),
        };
    }
    let wanted = match asked {
        None => false,
        Some(Value::Bool(wanted)) => wanted,
        Some(_) => return Err(("bad_field", "logprobs must be true or false".to_string())),
    };
    if let Some(value) = &top {
        number
            .set("logprobs", value)
            .map_err(|(code, message)| (code, message.replacen("logprobs", "top_logprobs", 1)))?;
    }
    match (wanted, number.logprobs) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(("bad_field", "top_logprobs needs logprobs: true".to_string())),
    }
}
