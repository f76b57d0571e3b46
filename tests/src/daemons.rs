//! Workers that leave behind what is hard to end.

/// A worker with descendants of every kind: forked, forked twice, in another session, deaf to signals, stopped. All of them
/// hold standard output open, so its end is the end of all of them. It prints its process id, and before it
/// whatever the variable `BEFORE` holds.
pub const WORKER: &str = "\
    sleep 1000 & \
    (sleep 1000 & ) ; \
    setsid sleep 1000 & \
    (setsid sh -c 'sleep 1000 & setsid sleep 1000' &) ; \
    (trap '' TERM INT HUP QUIT; exec sleep 1000) & \
    sh -c 'kill -STOP $$; exec sleep 1000' & \
    echo $BEFORE $$; exec sleep 1000";
