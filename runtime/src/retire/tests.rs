use super::*;
use crate::container::view::{Exit, ExitReason};

const KEEP: Keep = Keep { per_container: 2, pods: 3, after: Duration::from_nanos(100) };

fn sandbox(byte: u8, name: &str, stopped_at: Option<i64>) -> Arc<SandboxView> {
    let key = SandboxKey { name: name.into(), attempt: u32::from(byte), ..Default::default() };
    Arc::new(SandboxView {
        id: SandboxId::from_random([byte; 32]),
        spec: Arc::new(crate::sandbox::SandboxSpec { key, ..Default::default() }),
        phase: if stopped_at.is_some() { SandboxPhase::NotReady } else { SandboxPhase::Ready },
        created_at: i64::from(byte),
        stopped_at,
        addresses: Vec::new(),
        netns: None,
        holder_pid: None,
        run_dir: "/".into(),
    })
}

fn container(sandbox: u8, byte: u8, name: &str, ended: bool) -> Arc<ContainerView> {
    let record = crate::store::record::tests::container(sandbox, byte);
    let mut spec = (*record.spec).clone();
    spec.key.name = name.into();
    let exit = Exit { code: 0, reason: ExitReason::Completed, message: String::new(), started_at: 1, finished_at: 2 };
    Arc::new(ContainerView {
        id: record.id,
        sandbox: record.sandbox,
        spec: Arc::new(spec),
        state: if ended { ContainerState::Exited(exit) } else { ContainerState::Running { started_at: 1 } },
        created_at: i64::from(byte),
        image_id: String::new(),
        image_ref: String::new(),
        log_path: "".into(),
        volumes: Vec::new(),
        resources: Default::default(),
        stop_signal: 15,
        user: Default::default(),
        pid: None,
        run_dir: "/".into(),
    })
}

/// The first bytes of what is to go, sandboxes and containers.
fn gone(now: i64, sandboxes: &[Arc<SandboxView>], containers: &[Arc<ContainerView>]) -> (Vec<u8>, Vec<u8>) {
    let byte = |id: &str| u8::from_str_radix(&id[..2], 16).unwrap();
    let excess = excess(&KEEP, now, sandboxes, containers);
    let mut containers: Vec<_> = excess.containers.iter().map(|(_, id)| byte(id.as_str())).collect();
    containers.sort_unstable();
    (excess.sandboxes.iter().map(|id| byte(id.as_str())).collect(), containers)
}

#[test]
fn the_newest_of_each_name_stay_and_what_runs_is_not_counted() {
    let sandboxes = [sandbox(1, "web", None)];
    let containers = [
        container(1, 1, "app", true),
        container(1, 2, "init", true),
        container(1, 3, "app", true),
        container(1, 4, "app", true),
        container(1, 5, "app", false),
    ];
    assert_eq!(gone(1000, &sandboxes, &containers), (vec![], vec![1]));
}

#[test]
fn a_name_is_counted_over_all_sandboxes_of_its_pod_and_not_over_those_of_others() {
    let sandboxes = [sandbox(1, "web", Some(990)), sandbox(2, "web", None), sandbox(3, "db", None)];
    let containers = [
        container(1, 1, "app", true),
        container(3, 2, "app", true),
        container(1, 3, "app", true),
        container(2, 4, "app", true),
        container(3, 5, "app", true),
    ];
    assert_eq!(gone(1000, &sandboxes, &containers), (vec![], vec![1]));
}

#[test]
fn a_sandbox_that_holds_how_something_ended_stays_however_old() {
    // The init container ended well in the first sandbox; the second, fourth and sixth are empty, the last runs.
    let sandboxes: Vec<_> = (1..8).map(|n| sandbox(n, "web", (n < 7).then_some(i64::from(n)))).collect();
    let containers = [container(1, 1, "init", true), container(3, 2, "app", true), container(5, 3, "app", true)];
    assert_eq!(gone(1000, &sandboxes, &containers), (vec![2], vec![]));
}

#[test]
fn pods_that_are_over_go_whole_and_the_one_stopped_first_goes_first() {
    let mut sandboxes: Vec<_> =
        [40, 10, 30, 20, 50].iter().zip(1..).map(|(at, n)| sandbox(n, &n.to_string(), Some(*at))).collect();
    sandboxes.push(sandbox(6, "2", Some(11)));
    let containers = [container(2, 1, "app", true), container(4, 2, "app", true)];
    assert_eq!(gone(1000, &sandboxes, &containers), (vec![2, 6, 4], vec![]));
}

#[test]
fn a_pod_is_not_over_before_its_time_nor_when_nobody_asked_for_its_end() {
    let mut sandboxes: Vec<_> = (1..10).map(|n| sandbox(n, &n.to_string(), Some(901))).collect();
    assert_eq!(gone(1000, &sandboxes, &[]), (vec![], vec![]), "too young");
    assert_eq!(gone(1001, &sandboxes, &[]).0.len(), 6);
    for view in &mut sandboxes {
        // A reboot ended them.
        Arc::get_mut(view).unwrap().stopped_at = None;
        Arc::get_mut(view).unwrap().phase = SandboxPhase::NotReady;
    }
    assert_eq!(gone(i64::MAX, &sandboxes, &[]), (vec![], vec![]));
}

proptest::proptest! {
    /// Whatever there is: nothing that runs goes, and of a pod that is not over the newest end of every name stays.
    #[test]
    fn what_kubelet_decides_by_stays(
        pods in proptest::collection::vec((0u8..4, proptest::option::of(0i64..2000)), 1..12),
        ended in proptest::collection::vec((0usize..12, 0u8..3, proptest::bool::ANY), 0..60),
    ) {
        let sandboxes: Vec<_> = pods.iter().zip(1..).map(|((name, at), n)| sandbox(n, &name.to_string(), *at)).collect();
        let containers: Vec<_> = ended.iter().zip(1..).map(|((home, name, ended), n)| {
            let home = u8::try_from(home % pods.len() + 1).unwrap();
            let runs = !ended && sandboxes[usize::from(home) - 1].stopped_at.is_none();
            container(home, n, &name.to_string(), !runs)
        }).collect();
        let excess = excess(&KEEP, 1000, &sandboxes, &containers);
        for id in &excess.sandboxes {
            let view = sandboxes.iter().find(|view| view.id == *id).unwrap();
            assert_eq!(view.phase, SandboxPhase::NotReady);
        }
        let name = |view: &ContainerView| {
            let home = sandboxes.iter().find(|home| home.id == view.sandbox).unwrap();
            (home.spec.key.name.clone(), view.spec.key.name.clone())
        };
        let over = |pod: &str| sandboxes.iter().filter(|view| view.spec.key.name == pod)
            .all(|view| view.stopped_at.is_some_and(|at| at <= 900));
        let goes = |view: &ContainerView| excess.sandboxes.contains(&view.sandbox)
            || excess.containers.iter().any(|(_, id)| *id == view.id);
        for view in containers.iter().filter(|view| goes(view)) {
            assert!(matches!(view.state, ContainerState::Exited(_)));
            let newer = containers.iter().filter(|other| matches!(other.state, ContainerState::Exited(_)) && !goes(other)
                && other.created_at > view.created_at && name(other) == name(view)).count();
            assert!(over(&name(view).0) || newer >= KEEP.per_container, "{newer}");
        }
    }
}
