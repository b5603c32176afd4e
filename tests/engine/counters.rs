//! What a server reads of an engine: its counters, its gauges, and the times of one request.

use super::*;

#[test]
fn a_dropped_answer_is_cancelled_and_a_late_one_has_failed() {
    let (engine, control) = engine(60, |_| {});
    control.pace_us.store(2000, Relaxed);
    let mut dropped = engine.submit(request(&generate(prompt(1, 3), 190))).unwrap();
    assert!(matches!(dropped.wait(), Some(Event::Token(_))));
    drop(dropped);
    let mut late = request(&generate(prompt(2, 3), 190));
    late.deadline = Some(Instant::now() + Duration::from_millis(10));
    assert_eq!(read(engine.submit(late).unwrap()).unwrap_err().kind(), ErrorKind::Timeout);
    ask(&engine, &generate(prompt(3, 3), 4)).unwrap();
    assert_idle(&engine);
    let Stats { requests, completed, cancelled, failed, .. } = engine.stats();
    assert_eq!((requests, completed, cancelled, failed), (3, 1, 1, 1));
}

#[test]
fn steps_are_counted_by_their_sequences_and_rows() {
    let (engine, control) = engine(60, |it| it.speculation = false);
    let counted = |histogram: &mut dyn Iterator<Item = (u64, u64)>| -> Vec<_> {
        histogram.filter(|(_, steps)| *steps > 0).collect()
    };
    // The prompt, then a row for each token but the last.
    ask(&engine, &generate(prompt(1, 7), 5)).unwrap();
    assert_idle(&engine);
    let stats = engine.stats();
    assert_eq!(counted(&mut stats.sequences_per_step.counts()), [(1, 5)]);
    assert_eq!(counted(&mut stats.rows_per_step.counts()), [(1, 4), (8, 1)]);

    let specs: Vec<_> = (2..5).map(|it| generate(prompt(it, 8), 5)).collect();
    let stats = burst(&engine, &control, &specs);
    let together = counted(&mut stats.sequences_per_step.counts());
    assert_eq!(together.iter().map(|(_, steps)| steps).sum::<u64>(), stats.steps);
    assert!(together.contains(&(4, 4)) || together.contains(&(4, 5)), "three in most steps: {together:?}");
}

#[test]
fn what_was_preempted_waits() {
    let (engine, _) = engine(8, |_| {});
    let first = engine.submit(request(&generate(prompt(1, 20), 100))).unwrap();
    let parked = Spec { prompt: prompt(2, 40), ..filtered(Even, 60) };
    let parked = engine.submit(request(&parked)).unwrap();
    until("the first has ended", || engine.stats().completed == 1);
    let stats = engine.stats();
    assert_eq!((stats.preempted, stats.running, stats.waiting), (1, 0, 1));
    assert_eq!(stats.leased_pages(), 0);
    drop((first, parked));
    assert_idle(&engine);
}

#[test]
fn the_times_of_a_request_add_up() {
    let (engine, control) = engine(60, |_| {});
    control.pace_us.store(2000, Relaxed);
    let (begin, mut finish, mut first) = (Instant::now(), None, None);
    let mut answer = engine.submit(request(&generate(prompt(1, 40), 20))).unwrap();
    while let Some(event) = answer.wait() {
        first.get_or_insert_with(|| begin.elapsed());
        finish = if let Event::Done(finish) = event { Some(finish) } else { None };
    }
    let (timings, whole) = (finish.unwrap().timings, begin.elapsed());
    // 24 rows a step: the first token needs two.
    assert!(timings.first_token >= timings.queue + timings.prefill, "{timings:?}");
    assert!(timings.first_token >= Duration::from_millis(4) && timings.first_token <= first.unwrap());
    assert!(timings.total() > timings.first_token && timings.total() <= whole, "{timings:?}");
}
