//! `dslaunch run` over several nodes, each a dslaunch of its own on this machine. Most ranks are shells; real torch programs
//! come last. AGT-1 to AGT-5, LCH-1, LCH-3, TOK-1, TOK-2.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::nodes::{Cluster, End, Node};

fn sorted(ends: &[End]) -> Vec<&str> {
    let mut lines: Vec<_> = ends.iter().flat_map(|end| end.stdout.lines()).collect();
    lines.sort();
    lines
}

fn codes(ends: &[End]) -> Vec<Option<i32>> {
    ends.iter().map(|end| end.code).collect()
}

/// The same on nodes 0 and 1, to the end.
fn both(cluster: &Cluster, flags: &str, script: &str) -> [End; 2] {
    [0, 1].map(|node| cluster.shell(node, flags, script)).map(Node::end)
}

/// Asserts that every node prints all of `texts` on standard error.
fn assert_all_say(ends: &[End], texts: &[&str]) {
    for (end, text) in ends.iter().flat_map(|end| texts.iter().map(move |text| (end, text))) {
        assert!(end.stderr.contains(text), "{text:?} is missing: {ends:#?}");
    }
}

#[test]
fn ranks_of_all_nodes_are_one_world() {
    let cluster = Cluster::new(3);
    let names = "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $GROUP_RANK $GROUP_WORLD_SIZE $ROLE_RANK \
                 $ROLE_WORLD_SIZE $MASTER_ADDR $TORCHELASTIC_RUN_ID $TORCHELASTIC_MAX_RESTARTS";
    let script = format!("echo {names}; echo $MASTER_PORT >&2; echo ${{DSLAUNCH_JOB_TOKEN-none}} >&2");
    // Node 0's budget is the run's. The folder for logs is one that nodes share.
    let flags = ["--nproc 1 --max-restarts 4", "--nproc 2", "--nproc 3 --max-restarts 9"];
    let start = |node: u32| {
        let flags = format!("{} --rdzv-id id -r 2 --log-dir logs", flags[node as usize]);
        cluster.shell(node, &flags, &script)
    };
    // The last one is first.
    let ends = [2, 1, 0].map(start).map(Node::end);
    assert_eq!(codes(&ends), [Some(0); 3], "{ends:#?}");
    let line = |rank, local, on_node, node| format!("{rank} {local} 6 {on_node} {node} 3 {rank} 6 127.0.0.1 id 4");
    let expected =
        [line(0, 0, 1, 0), line(1, 0, 2, 1), line(2, 1, 2, 1), line(3, 0, 3, 2), line(4, 1, 3, 2), line(5, 2, 3, 2)];
    assert_eq!(sorted(&ends), expected);
    let log = |place: &str| std::fs::read_to_string(cluster.path(&format!("logs/{place}/stderr.log"))).unwrap();
    let first = log("node-0/attempt-0/0");
    assert!(first.lines().next().unwrap().parse::<u16>().unwrap() > 1023, "{first}");
    assert!(first.ends_with("none\n"), "{first}");
    assert_eq!(first, log("node-2/attempt-0/2"), "rank 0's port is known to all");
    cluster.assert_no_rank_is_left();
}

#[test]
fn a_rank_that_dies_restarts_all_nodes() {
    let cluster = Cluster::new(2);
    let script = "echo rank $RANK attempt $TORCHELASTIC_RESTART_COUNT
        [ $RANK = 2 ] && [ $TORCHELASTIC_RESTART_COUNT = 0 ] && exit 5
        [ $TORCHELASTIC_RESTART_COUNT = 1 ] || sleep 1000";
    let since = Instant::now();
    let ends = both(&cluster, "--nproc 2 --max-restarts 1", script);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}: {ends:#?}", since.elapsed());
    assert_eq!(codes(&ends), [Some(0); 2], "{ends:#?}");
    let told = "rank 2 on node 1 failed in attempt 0: exited with code 5";
    assert_all_say(&ends, &[told, "starting all ranks again (restart 1 of 1)"]);
    assert_eq!(ends.iter().flat_map(|end| end.stdout.matches("attempt 1")).count(), 4, "{ends:#?}");
    cluster.assert_no_rank_is_left();
}

#[test]
fn when_the_budget_is_used_up_all_end_with_the_first_failures_code() {
    let cluster = Cluster::new(2);
    let script = r#"[ $RANK = 1 ] || exec sleep 1000
        echo '{"message": {"message": "ValueError: boom"}}' > $TORCHELASTIC_ERROR_FILE
        exit 7"#;
    let ends = both(&cluster, "--max-restarts 2", script);
    assert_eq!(codes(&ends), [Some(7); 2], "{ends:#?}");
    let last = "rank 1 on node 1 failed in attempt 2: exited with code 7\n  ValueError: boom";
    assert_all_say(&ends, &[last, "giving up: the restart budget is used up (--max-restarts = 2)"]);
    cluster.assert_no_rank_is_left();
    // Without a budget, and by a signal.
    let cluster = Cluster::new(2);
    let ends = both(&cluster, "", "[ $RANK = 0 ] && kill -SEGV $$; sleep 1000");
    assert_eq!(codes(&ends), [Some(139); 2], "{ends:#?}");
    assert_all_say(&ends, &["rank 0 on node 0 failed in attempt 0: killed by SIGSEGV"]);
    cluster.assert_no_rank_is_left();
}

/// Ranks say that they run, and end in the second attempt.
const UNTIL_RESTARTED: &str =
    "echo > up-$RANK-$TORCHELASTIC_RESTART_COUNT; [ $TORCHELASTIC_RESTART_COUNT = 1 ] || sleep 1000";

#[test]
fn a_node_that_was_killed_comes_back() {
    let cluster = Cluster::new(2);
    let flags = "--nproc 2 --max-restarts 2";
    let zero = cluster.shell(0, flags, UNTIL_RESTARTED);
    let one = cluster.shell(1, flags, UNTIL_RESTARTED);
    (0..4).for_each(|rank| cluster.wait_for(&format!("up-{rank}-0")));
    one.signal(Signal::SIGKILL);
    one.end();
    let since = Instant::now();
    let ends = [zero, cluster.shell(1, flags, UNTIL_RESTARTED)].map(Node::end);
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}: {ends:#?}", since.elapsed());
    assert_eq!(codes(&ends), [Some(0); 2], "{ends:#?}");
    assert_all_say(&ends[..1], &["node 1 failed in attempt 0: its dslaunch ", "(restart 1 of 2)"]);
    println!("node 1 killed and started again: all done after {:?}", since.elapsed());
    cluster.assert_no_rank_is_left();
}

#[test]
fn a_node_that_was_killed_is_noticed() {
    let cluster = Cluster::new(2);
    // Rank 0 takes the end of its peer for a failure of its own, as torch does: LCH-3.
    let follows = "echo > up-$RANK; while [ ! -s pid ]; do sleep 0.01; done
        while [ -e /proc/$(cat pid)/exe ]; do sleep 0.01; done; sleep 0.1; exit 1";
    let zero = cluster.shell(0, "", follows);
    let one = cluster.shell(1, "", "echo $$ > pid; echo > up-$RANK; exec sleep 1000");
    (0..2).for_each(|rank| cluster.wait_for(&format!("up-{rank}")));
    one.signal(Signal::SIGKILL);
    let since = Instant::now();
    let end = zero.end();
    println!("node 1 killed: noticed after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}: {end:#?}", since.elapsed());
    assert_eq!(end.code, Some(1));
    assert!(end.stderr.contains("node 1 failed in attempt 0: its dslaunch is gone"), "{end:#?}");
    one.end();
    cluster.assert_no_rank_is_left();
}

#[test]
fn a_node_that_hangs_is_noticed_by_its_silence_and_may_come_back() {
    let cluster = Cluster::new(2);
    let first_attempt = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] && exit 0";
    let zero = cluster.shell(0, "--max-restarts 1", &format!("{first_attempt}; echo $$ > zero; exec sleep 1000"));
    // The rank goes on; it is its launcher that is silent.
    let stops = format!("{first_attempt}; echo $PPID > one; kill -STOP $PPID; echo > up; exec sleep 1000");
    let one = cluster.shell(1, "", &stops);
    ["zero", "one", "up"].into_iter().for_each(|name| cluster.wait_for(name));
    let pid = |name: &str| std::fs::read_to_string(cluster.path(name)).unwrap().trim().parse::<u32>().unwrap();
    let noticed = tests::job::wait_until_gone(&[pid("zero")], Duration::from_secs(8));
    println!("node 1 stopped: noticed after {noticed:?}");
    tests::job::send(pid("one"), Signal::SIGCONT);
    let ends = [zero, one].map(Node::end);
    assert_eq!(codes(&ends), [Some(0); 2], "{ends:#?}");
    assert_all_say(&ends, &["node 1 failed in attempt 0: its dslaunch has not been heard for 5.", "(restart 1 of 1)"]);
    cluster.assert_no_rank_is_left();
}

/// AGT-5.
#[test]
fn a_node_that_is_replaced_while_it_is_stopped_has_stopped_its_ranks_before() {
    let cluster = Cluster::new(2);
    let zero = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || exec sleep 1000";
    // The rank goes on; it is its launcher that is stopped, and hears nothing.
    let stops = "echo $$ > old.tmp; mv old.tmp old; kill -STOP $PPID; while :; do sleep 0.05; done";
    let looks = "[ -e /proc/$(cat old)/exe ] && echo together; echo alone";
    let (zero, stopped) = (cluster.shell(0, "--max-restarts 1", zero), cluster.shell(1, "", stops));
    cluster.wait_for("old");
    let since = Instant::now();
    let old: u32 = std::fs::read_to_string(cluster.path("old")).unwrap().trim().parse().unwrap();
    let ends = [zero, cluster.shell(1, "", looks)].map(Node::end);
    println!("node 1 stopped and replaced: all done after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}: {ends:#?}", since.elapsed());
    assert_eq!((codes(&ends), sorted(&ends)), (vec![Some(0); 2], vec!["alone"]), "{ends:#?}");
    assert_all_say(&ends[..1], &["node 1 failed in attempt 0: its dslaunch was started again", "(restart 1 of 1)"]);
    // It was never continued: the kernel has ended it.
    tests::job::wait_until_gone(&[old], Duration::ZERO);
    let end = stopped.end();
    assert_eq!(end.code, Some(137), "{end:#?}");
    assert_all_say(&[end], &["the launcher was killed by SIGKILL; all that it has started is killed too"]);
    cluster.assert_no_rank_is_left();
}

#[test]
fn node_0_that_was_killed_comes_back() {
    let cluster = Cluster::new(2);
    let flags = "--max-restarts 2";
    let zero = cluster.shell(0, flags, UNTIL_RESTARTED);
    let one = cluster.shell(1, flags, UNTIL_RESTARTED);
    (0..2).for_each(|rank| cluster.wait_for(&format!("up-{rank}-0")));
    zero.signal(Signal::SIGKILL);
    zero.end();
    let since = Instant::now();
    let ends = [cluster.shell(0, flags, UNTIL_RESTARTED), one].map(Node::end);
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}: {ends:#?}", since.elapsed());
    assert_eq!(codes(&ends), [Some(0); 2], "{ends:#?}");
    assert_all_say(&ends[1..], &["node 0's dslaunch was started again", "(restart 1 of 2)"]);
    cluster.assert_no_rank_is_left();
}

#[test]
fn without_node_0_the_others_end() {
    let cluster = Cluster::new(2);
    let zero = cluster.shell(0, "", UNTIL_RESTARTED);
    let one = cluster.shell(1, "--rdzv-conf join_timeout=1", UNTIL_RESTARTED);
    (0..2).for_each(|rank| cluster.wait_for(&format!("up-{rank}-0")));
    zero.signal(Signal::SIGKILL);
    zero.end();
    let since = Instant::now();
    let end = one.end();
    let took = since.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(15), "{took:?}: {end:#?}");
    assert_eq!(end.code, Some(1), "{end:#?}");
    let texts =
        ["node 0's dslaunch is out of reach for 10 s", "no dslaunch of node 0 answers at ", &cluster.endpoint()];
    assert_all_say(&[end], &texts);
    cluster.assert_no_rank_is_left();
}

#[test]
fn a_wrong_token_is_refused_and_changes_nothing() {
    let cluster = Cluster::new(2);
    let token = |name: &str| {
        let path = cluster.path(name);
        std::fs::write(&path, format!("the token in {name}\n").replace(' ', "-")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        format!("--token-file {}", path.display())
    };
    let (right, wrong) = (token("right"), token("wrong"));
    let zero = cluster.shell(0, &right, "echo $RANK");
    let impostor = cluster.shell(1, &wrong, "echo impostor").end();
    assert_eq!((impostor.code, impostor.stdout.as_str()), (Some(2), ""), "{impostor:#?}");
    let told = format!("{} refuses this node's token", cluster.endpoint());
    assert_all_say(&[impostor], &[&told]);
    let other_run = cluster.shell(1, &format!("{right} --rdzv-id other"), "echo impostor").end();
    assert_eq!(other_run.code, Some(2), "{other_run:#?}");
    assert_all_say(&[other_run], &["this is run \"none\", not \"other\""]);
    let ends = [zero, cluster.shell(1, &right, "echo $RANK")].map(Node::end);
    assert_eq!((codes(&ends), sorted(&ends)), (vec![Some(0); 2], vec!["0", "1"]), "{ends:#?}");
    assert_all_say(&ends[..1], &["127.0.0.1 does not know this run's token: 1 wrong guess so far"]);
    cluster.assert_no_rank_is_left();
}

#[test]
fn without_a_token_nodes_of_one_user_share_a_random_one_and_others_are_refused() {
    let cluster = Cluster::new(2);
    let zero = cluster.shell(0, "", "echo $RANK");
    // Somebody who knows the run's name, its port and this program.
    let impostor = cluster.elsewhere(1, "echo impostor").end();
    assert_eq!((impostor.code, impostor.stdout.as_str()), (Some(2), ""), "{impostor:#?}");
    assert_all_say(&[impostor], &["refuses this node's token", "all nodes must be of one user with one cache folder"]);
    let ends = [zero, cluster.shell(1, "", "echo $RANK")].map(Node::end);
    assert_eq!((codes(&ends), sorted(&ends)), (vec![Some(0); 2], vec!["0", "1"]), "{ends:#?}");
    let token = std::fs::metadata(cluster.path("cache/dslaunch/nodes/token")).unwrap();
    assert_eq!((token.permissions().mode() & 0o777, token.len()), (0o600, 64));
}

#[test]
fn a_token_that_others_can_read_is_refused_by_name() {
    let cluster = Cluster::new(2);
    let file = cluster.path("open");
    std::fs::write(&file, "0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let end = cluster.shell(0, &format!("--token-file {}", file.display()), "echo started").end();
    assert_eq!((end.code, end.stdout.as_str()), (Some(2), ""), "{end:#?}");
    let told =
        format!("the token's file {}: expected that nobody else can read or write it, not mode 666", file.display());
    assert_all_say(&[end], &[&told]);
}

/// Node 0 proves itself too: what listens in its place and does not know the token learns nothing and gives nobody a place.
#[test]
fn a_false_node_0_is_refused_by_an_agent() {
    let check = |greeting: &'static [u8], verdict: &'static [u8], text: &str| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let flags = format!("--rendezvous {}", listener.local_addr().unwrap());
        let cluster = Cluster::new(2);
        let one = cluster.shell(1, &flags, "echo started");
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(greeting).unwrap();
        if !verdict.is_empty() {
            stream.write_all(&[7; 32]).unwrap();
            let mut proof = [0; 64];
            stream.read_exact(&mut proof).unwrap();
            stream.write_all(verdict).unwrap();
        }
        let end = one.end();
        assert_eq!((end.code, end.stdout.as_str()), (Some(2), ""), "{end:#?}");
        assert_all_say(&[end], &[text]);
    };
    check(b"dslaunch-agent-2", &[1; 33], "what listens there does not know this run's token");
    check(b"dslaunch-agent-9", b"", "node 0's dslaunch speaks version 9 of the agents' protocol, this one version 2");
}

#[test]
fn where_others_can_reach_it_a_run_needs_a_token() {
    let cluster = Cluster::new(2);
    let end = cluster.shell(1, "--rendezvous 192.0.2.1:7", "echo started").end();
    assert_eq!((end.code, end.stdout.as_str()), (Some(2), ""), "{end:#?}");
    assert_all_say(
        &[end],
        &["192.0.2.1:7 can be reached from other machines, and the run has no token", "--token-file"],
    );
}

#[test]
fn a_missing_node_is_named_at_the_deadline() {
    let cluster = Cluster::new(3);
    let flags = "--rdzv-conf join_timeout=2";
    let ends = [0, 2].map(|node| cluster.shell(node, flags, "echo started")).map(Node::end);
    assert_eq!((codes(&ends), sorted(&ends)), (vec![Some(1); 2], vec![]), "{ends:#?}");
    assert_all_say(&ends, &["giving up: rendezvous: 2/3 nodes after 2s, missing nodes 1\n"]);
    let alone = cluster.shell(1, flags, "echo started").end();
    assert_eq!(alone.code, Some(1), "{alone:#?}");
    assert_all_say(&[alone], &["no dslaunch of node 0 answers at ", "for 2 s: Connection refused"]);
}

#[test]
fn a_signal_to_one_node_stops_all() {
    for (node, signal, name, code) in [(0, Signal::SIGINT, "INT", 130), (1, Signal::SIGTERM, "TERM", 143)] {
        let cluster = Cluster::new(2);
        // Short sleeps: a shell that gets the signal just before it starts one looks at it after that.
        let script =
            format!("trap 'sleep 0.5; echo saved; exit 0' {name}; echo > up-$RANK; while :; do sleep 0.05; done");
        let nodes = [0, 1].map(|node| cluster.shell(node, "--max-restarts 3", &script));
        (0..2).for_each(|rank| cluster.wait_for(&format!("up-{rank}")));
        nodes[node].signal(signal);
        let since = Instant::now();
        let ends = nodes.map(Node::end);
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        assert_eq!((codes(&ends), sorted(&ends)), (vec![Some(code); 2], vec!["saved"; 2]), "{ends:#?}");
        assert_all_say(&ends, &[&format!("stopped by SIG{name}: no rank is left")]);
        cluster.assert_no_rank_is_left();
    }
}

#[test]
fn a_signal_while_others_are_missing_stops_all() {
    let cluster = Cluster::new(3);
    let [zero, one] = [0, 1].map(|node| cluster.shell(node, "", "echo started"));
    // A folder for logs is made after signals are listened for.
    while tests::run::names_in(&cluster.path("tmp")).len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    one.signal(Signal::SIGTERM);
    let ends = [zero, one].map(Node::end);
    assert_eq!((codes(&ends), sorted(&ends)), (vec![Some(143); 2], vec![]), "{ends:#?}");
}

#[test]
fn a_command_that_one_node_does_not_have_ends_the_round() {
    // Without node 0 there is nobody to wait for, whatever the budget says.
    for (without, budget) in [(1, ""), (0, "--max-restarts 3")] {
        let cluster = Cluster::new(2);
        let other = cluster.shell(1 - without, budget, "sleep 1000");
        let mut command = cluster.command(without, budget);
        command.args(["--", "/no/such/program"]);
        let since = Instant::now();
        let (output, end) = (command.output().unwrap(), other.end());
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        assert_eq!((output.status.code(), end.code), (Some(3), Some(1)), "{output:?} {end:#?}");
        let told = format!("node {without} failed in attempt 0: cannot start /no/such/program: No such file");
        assert_all_say(&[end], &[&told]);
        cluster.assert_no_rank_is_left();
    }
}

/// Whatever dies, and whenever: dslaunch's processes and ranks of three nodes, one after the other.
#[test]
fn a_run_outlives_whatever_is_killed() {
    const KILLS: usize = 40;
    let cluster = Cluster::new(3);
    let script = "while [ ! -e enough ]; do sleep 0.05; done";
    let start = |node: usize| cluster.shell(node as u32, "--nproc 2 --max-restarts 1000", script);
    let mut nodes = [0, 1, 2].map(start);
    // The same in every run, but for who runs when.
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let start_again = |nodes: &mut [Node; 3]| {
        for (at, node) in nodes.iter_mut().enumerate() {
            if node.has_ended() {
                let end = std::mem::replace(node, start(at)).end();
                assert!(matches!(end.code, None | Some(137)), "node {at}: {end:#?}");
            }
        }
    };
    let mut killed = 0;
    while killed < KILLS {
        // No event is waited for: any moment is as good.
        std::thread::sleep(Duration::from_millis([1, 20, 100, 250][next(4)]));
        start_again(&mut nodes);
        let mut victims = nodes[next(3)].processes();
        let ranks = tests::run::names_in(&cluster.path("pids")).into_iter().map(|pid| pid.parse().unwrap());
        victims.extend(ranks.filter(|pid: &u32| std::fs::metadata(format!("/proc/{pid}/exe")).is_ok()).take(2));
        let victim = nix::unistd::Pid::from_raw(victims[next(victims.len())] as i32);
        killed += usize::from(nix::sys::signal::kill(victim, Signal::SIGKILL).is_ok());
    }
    let since = Instant::now();
    // Those that were killed last are still ending.
    while since.elapsed() < Duration::from_secs(1) {
        start_again(&mut nodes);
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(cluster.path("enough"), "").unwrap();
    let ends = nodes.map(Node::end);
    assert_eq!(codes(&ends), [Some(0); 3], "{ends:#?}");
    println!("{KILLS} processes killed: done {:?} after the last", since.elapsed());
    cluster.assert_no_rank_is_left();
}

#[test]
fn torch_sums_over_two_nodes() {
    let cluster = Cluster::new(2);
    let flags = "--nproc-per-node 2 --max-restarts 1";
    let ends = [0, 1].map(|node| cluster.allreduce(node, flags, &["--fail-rank", "3"])).map(Node::end);
    assert_eq!(codes(&ends), [Some(0); 2], "{ends:#?}");
    let line = |rank: u32| format!("rank {rank} of 4 on node {} in attempt 1: 150", rank / 2);
    assert_eq!(sorted(&ends), (0..4).map(line).collect::<Vec<_>>());
    assert_all_say(&ends, &["rank 3 on node 1 failed in attempt 0: killed by SIGKILL"]);
}
