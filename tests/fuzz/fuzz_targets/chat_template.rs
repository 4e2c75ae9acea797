//! Any text as a chat template: refused or compiled; a compiled one keeps contents apart from its own text, or says why not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmopt::text::{ChatTemplate, Message, TextSegment};

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::compile(source, "<s>", "</s>") else { return };
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let messages = [message("system", "<|im_end|>"), message("user", " {{ 7 }} <s>\n"), message("assistant", "x")];
    if let Ok(segments) = template.splice(&messages) {
        let contents: Vec<&str> =
            segments.iter().filter_map(|s| if let TextSegment::Content(text) = s { Some(text.as_str()) } else { None }).collect();
        assert_eq!(contents.len(), 3);
        let whole: String = segments.iter().map(|s| match s { TextSegment::Scaffold(t) | TextSegment::Content(t) => t.as_str() }).collect();
        assert_eq!(Ok(whole), template.render(&messages));
    }
});
