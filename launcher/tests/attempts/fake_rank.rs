//! A stand-in for the worker: it speaks the control protocol, keeps in step with its peers by barriers, "trains" nothing,
//! and fails as the variable FAKE_RANK says.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::signal::{Signal, raise};
use nix::sys::stat::fstat;
use proto::control::control_client::ControlClient;
use proto::control::report_request::Event;
use proto::control::*;
use proto::dial;
use proto::env::{Beginning, Meeting, WorkerEnv};
use proto::manifest::{Contents, FileEntry, Manifest, Progress};
use proto::plan::Plan;
use proto::progress::{STOP, wish_word};
use proto::run_dir::RunDir;
use tonic::transport::Channel;

struct Rank {
    env: WorkerEnv,
    plan: Plan,
    client: ControlClient<Channel>,
    fault: String,
}

pub fn main() {
    let fault = std::env::var("FAKE_RANK").unwrap();
    if fault == "no library" {
        eprintln!(
            "dslaunch-rank: error while loading shared libraries: libtorch_cpu.so: cannot open shared object file"
        );
        std::process::exit(127);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { Rank::connect(fault).await.train().await });
}

impl Rank {
    async fn connect(fault: String) -> Self {
        let env = WorkerEnv::from_process().unwrap();
        let plan = serde_json::from_slice(&fs::read(&env.plan).unwrap()).unwrap();
        let Meeting::Shm { fd } = env.meeting;
        let arena = fs::File::open(format!("/proc/self/fd/{fd}")).unwrap();
        assert_eq!(fstat(&arena).unwrap().st_size, 0, "descriptor {} is a fresh arena", arena.as_raw_fd());
        let channel = dial::channel(env.control_fd).await.unwrap();
        Self { env, plan, client: ControlClient::new(channel), fault }
    }

    async fn train(mut self) {
        let caller = self.caller();
        self.client
            .register(RegisterRequest { caller, pid: std::process::id(), version: proto::control::VERSION })
            .await
            .unwrap();
        let start = match &self.env.beginning {
            Beginning::Checkpoint(path) => Manifest::load(path).unwrap().progress,
            Beginning::Start | Beginning::Snapshot(_) => Progress::default(),
        };
        let resumed_step = start.step;
        self.report(Event::Started(Started { resumed_step })).await;
        for step in resumed_step + 1..=self.plan.steps {
            self.client.heartbeat(HeartbeatRequest { caller, step, phase: "reduce".into() }).await.unwrap();
            eprintln!("rank {} begins step {step}", self.env.rank);
            self.fail(step).await;
            self.fall_often(step - resumed_step).await;
            if self.is_asked_to_stop() {
                self.save(Progress { step, rows: step * self.plan.batch.global_batch_size, label_tokens: 0 }).await;
                return self.finish(step, true).await;
            }
            self.meet(format!("step {step}")).await;
            let metrics =
                StepMetrics { step, loss: 3.0 / step as f64, logged: self.plan.logs(step), ..Default::default() };
            self.report(Event::Step(metrics)).await;
            if self.plan.saves_after(step) {
                let rows = start.rows + (step - start.step) * self.plan.batch.global_batch_size;
                self.save(Progress { step, rows, label_tokens: rows }).await;
            }
            self.meet("saved".into()).await;
        }
        self.finish(self.plan.steps, false).await;
    }

    async fn finish(&mut self, step: u64, stopped_early: bool) {
        let (peak_memory_bytes, baseline_memory_bytes) = (1 << 20, 1 << 19);
        let finished = Finished {
            step,
            peak_memory_bytes,
            baseline_memory_bytes,
            stopped_early,
            gpu_peak_bytes: 0,
            lacks_data: false,
        };
        let request = ReportRequest { caller: self.caller(), event: Some(Event::Finished(finished)), number: 0 };
        self.client.report(request).await.unwrap();
    }

    /// Reads the launcher's word on the progress page.
    fn is_asked_to_stop(&self) -> bool {
        let page = fs::File::open(format!("/proc/self/fd/{}", self.env.progress_fd)).unwrap();
        let mut word = [0; 8];
        page.read_exact_at(&mut word, (wish_word(self.env.world_size) * 8) as u64).unwrap();
        u64::from_ne_bytes(word) == STOP
    }

    /// Does what FAKE_RANK says: `FAULT rank R at STEP in attempt A`; a part that is missing fits every rank, attempt.
    async fn fail(&mut self, step: u64) {
        let fits = |name: &str, value: u64| {
            let words: Vec<_> = self.fault.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            let named = words.windows(2).rfind(|pair| pair[0] == name).map(|pair| pair[1].parse::<u64>().unwrap());
            named.is_none_or(|named| named == value)
        };
        if self.fault.is_empty() || !fits("at", step) || !fits("attempt", self.env.attempt.into()) {
            return;
        }
        let me = fits("rank", self.env.rank as u64);
        match self.fault.split(' ').next().unwrap() {
            "kill" if me => raise(Signal::SIGKILL).unwrap(),
            "exit" if me => std::process::exit(0),
            "hang" => std::future::pending().await,
            "wait" => self.wait_for_the_wish().await,
            "deaf" => {
                // The only way to ignore a signal without unsafe: block it.
                nix::sys::signal::SigSet::all().thread_block().unwrap();
                std::future::pending().await
            }
            "nonsense" if me => self.nonsense().await,
            "report" if me => self.last_words().await,
            "echo" if self.env.rank == 0 => {
                self.fault = "report peer".into();
                self.last_words().await;
            }
            // After the echo: the key is put by nobody, so this waits its time.
            "echo" => {
                let get = GetKeyRequest { caller: self.caller(), key: "never".into(), timeout_ms: 100 };
                self.client.get_key(get).await.unwrap_err();
                raise(Signal::SIGKILL).unwrap();
            }
            _ => {}
        }
    }

    /// `restarts N`: makes a step in each of N attempts and dies in the next, then waits.
    async fn fall_often(&mut self, nth: u64) {
        let Some(restarts) = self.fault.strip_prefix("restarts ") else { return };
        match self.env.attempt < restarts.parse().unwrap() {
            true if nth == 2 && self.env.rank == 1 => raise(Signal::SIGKILL).unwrap(),
            true => {}
            false => self.wait_for_the_wish().await,
        }
    }

    async fn wait_for_the_wish(&self) {
        while !self.is_asked_to_stop() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// Sends messages that no rank would send, in a form that the launcher takes.
    async fn nonsense(&mut self) {
        let text = || "\u{1b}[2J\r\n\u{202e}/".repeat(2_000);
        for number in [0.0, f64::NAN, f64::INFINITY, -1.0, f64::MAX, 1.8e19] {
            let (loss, grad_norm, step) = (number, number, u64::MAX);
            let rates = StepMetrics { tokens_per_second: number, step_seconds: number, ..Default::default() };
            for event in [
                Event::Step(StepMetrics { step, loss, grad_norm, tokens: step, logged: false, ..rates }),
                Event::Skipped(SkippedStep { step, loss, grad_norm, in_a_row: step, samples: vec![text(); 20] }),
                Event::Eval(EvalMetrics { step, eval_loss: loss, label_tokens: step }),
                Event::Checkpoint(CheckpointSaved { step, path: text(), seconds: number }),
            ] {
                self.report(event).await;
            }
        }
        let heartbeat = HeartbeatRequest { caller: self.caller(), step: u64::MAX, phase: text() };
        self.client.heartbeat(heartbeat).await.unwrap();
    }

    /// `report KIND`: the kind is also the message.
    async fn last_words(&mut self) {
        let name = self.fault.split(' ').nth(1).unwrap();
        let kind = FailureKind::from_str_name(&format!("FAILURE_KIND_{}", name.to_uppercase())).unwrap().into();
        let step =
            self.fault.split(' ').skip_while(|word| *word != "at").nth(1).map_or(3, |step| step.parse().unwrap());
        let failed = FailedRequest { caller: self.caller(), kind, step, message: format!("reported {name}") };
        self.client.failed(failed).await.unwrap();
        std::process::exit(1);
    }

    async fn save(&mut self, progress: Progress) {
        let step = progress.step;
        let path = RunDir::new(&self.plan.output_dir).checkpoint(step);
        if self.env.rank == 0 {
            let manifest = Manifest::new(Contents {
                progress,
                seed: self.plan.seed,
                data: self.plan.data.train.file_name().unwrap().to_str().unwrap().to_owned(),
                model: self.plan.model.config.clone(),
                units: [].into(),
                optimizer: [].into(),
                frozen: [].into(),
                files: [("weights".into(), FileEntry { bytes: 4, blake3: blake3::hash(b"1234").to_string() })].into(),
            });
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("weights"), "1234").unwrap();
            fs::write(path.join(Manifest::FILE), manifest.to_text()).unwrap();
        }
        self.report(Event::Checkpoint(CheckpointSaved { step, path: path.display().to_string(), seconds: 0.1 })).await;
    }

    /// Waits for the other ranks; without them, until it is stopped.
    async fn meet(&mut self, name: String) {
        let barrier = BarrierRequest { caller: self.caller(), name, timeout_ms: 60_000 };
        if self.client.barrier(barrier).await.is_err() {
            std::future::pending().await
        }
    }

    /// Sends an event that rank 0 reports for all.
    async fn report(&mut self, event: Event) {
        if self.env.rank == 0 {
            let caller = self.caller();
            self.client.report(ReportRequest { caller, event: Some(event), number: 0 }).await.unwrap();
        }
    }

    fn caller(&self) -> Option<Caller> {
        Some(Caller { attempt: self.env.attempt, rank: self.env.rank as u32 })
    }
}
