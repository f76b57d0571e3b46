//! Keeps compiled kernels in a folder, so that only the first rank of a machine compiles them. A file is named for what it was
//! compiled from and begins with the hash of the rest: one that is torn or damaged is made anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

use proto::say;

use super::nvrtc::{Capability, Nvrtc, NvrtcError, OPTIONS, Source};

/// Length of the hash that a file begins with.
const HASH_BYTES: usize = blake3::OUT_LEN;

/// A folder of compiled kernels.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// In `folder`, which is made when something is kept.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Machine code of a source, which may include `header`, for a GPU: kept, or compiled by what `nvrtc` loads. A folder that
    /// cannot be written costs the time to compile, and says so.
    pub fn cubin(
        &self,
        source: &Source,
        header: &Source,
        capability: Capability,
        nvrtc: impl FnOnce() -> Result<Nvrtc, NvrtcError>,
    ) -> Result<Vec<u8>, NvrtcError> {
        let path = self.path(source, header, capability);
        if let Some(cubin) = kept(&path) {
            return Ok(cubin);
        }
        let cubin = nvrtc()?.compile(source, header, capability)?.cubin;
        if let Err(error) = self.keep(&path, &cubin) {
            say::err(format_args!("dslaunch-rank: kernels are not kept in {}: {error}", self.folder.display()));
        }
        Ok(cubin)
    }

    fn path(&self, source: &Source, header: &Source, capability: Capability) -> PathBuf {
        let Capability { major, minor } = capability;
        let mut hasher = blake3::Hasher::new();
        let texts = [source.name, source.text, header.name, header.text].into_iter().chain(OPTIONS);
        // With their lengths: no two lists of texts are one text.
        for text in texts {
            hasher.update(&text.len().to_le_bytes()).update(text.as_bytes());
        }
        self.folder.join(format!("{}-sm_{major}{minor}.cubin", hasher.finalize().to_hex()))
    }

    /// Ranks of a machine do this at the same time: each writes a file of its own and gives it the name.
    fn keep(&self, path: &Path, cubin: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let own = path.with_extension(format!("{}.tmp", process::id()));
        let content = [blake3::hash(cubin).as_bytes(), cubin].concat();
        fs::write(&own, content).and_then(|()| fs::rename(&own, path)).inspect_err(|_| drop(fs::remove_file(&own)))
    }
}

/// What is kept at `path`, if it is what was written.
fn kept(path: &Path) -> Option<Vec<u8>> {
    let content = fs::read(path).ok()?;
    let (hash, cubin) = content.split_at_checked(HASH_BYTES)?;
    (blake3::hash(cubin).as_bytes() == hash).then(|| cubin.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const H100: Capability = Capability { major: 9, minor: 0 };
    const HEADER: Source = Source { name: "shared.cuh", text: "#define VALUE 1\n" };
    const SOURCE: Source = Source {
        name: "set.cu",
        text: "#include \"shared.cuh\"\nextern \"C\" __global__ void set(int* x) { *x = VALUE; }",
    };

    /// A cache, and how often something was compiled for it.
    struct Counted {
        dir: tempfile::TempDir,
        compiled: Cell<u32>,
    }

    impl Counted {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), compiled: Cell::new(0) }
        }

        fn folder(&self) -> PathBuf {
            self.dir.path().join("kernels")
        }

        fn cubin(&self, header: &Source, capability: Capability) -> Vec<u8> {
            let nvrtc = || {
                self.compiled.set(self.compiled.get() + 1);
                Nvrtc::load()
            };
            Cache::new(&self.folder()).cubin(&SOURCE, header, capability, nvrtc).unwrap()
        }

        fn files(&self) -> Vec<PathBuf> {
            fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path()).collect()
        }
    }

    #[test]
    fn a_source_is_compiled_once_for_each_gpu_and_content() {
        let cache = Counted::new();
        let first = cache.cubin(&HEADER, H100);
        assert_eq!((cache.cubin(&HEADER, H100), cache.compiled.get()), (first.clone(), 1));
        cache.cubin(&HEADER, Capability { major: 8, minor: 0 });
        assert_eq!(cache.compiled.get(), 2);
        assert_ne!(cache.cubin(&Source { text: "#define VALUE 2\n", ..HEADER }, H100), first);
        assert_eq!((cache.compiled.get(), cache.files().len()), (3, 3));
    }

    #[test]
    fn what_is_damaged_is_compiled_anew() {
        let cache = Counted::new();
        let first = cache.cubin(&HEADER, H100);
        let file = cache.files().remove(0);
        let whole = fs::read(&file).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..10], &[]] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(cache.cubin(&HEADER, H100), first);
            assert_eq!(fs::read(&file).unwrap(), whole, "it is whole again");
        }
        assert_eq!(cache.compiled.get(), 4);
    }

    #[test]
    fn a_folder_that_cannot_be_written_only_costs_time() {
        let cache = Counted::new();
        fs::write(cache.folder(), "a file").unwrap();
        let first = cache.cubin(&HEADER, H100);
        assert_eq!((cache.cubin(&HEADER, H100), cache.compiled.get()), (first, 2));
    }
}
