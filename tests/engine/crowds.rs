//! Many at once: streams that nobody reads, long queues, twins, requests that are made later, and whatever
//! comes in between, in any order.

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use tallow::lora::{AdapterSlots, BoundAdapter};

use super::*;

/// So late that only a request that is stuck meets it.
fn patient(mut request: Request) -> Request {
    request.deadline = Some(Instant::now() + Duration::from_secs(60));
    request
}

#[test]
fn streams_that_nobody_reads_keep_nobody_waiting() {
    // pages, tokens of their prompt, whether that is the same for all; each needs a page or two
    for (pages, len, same) in
        [(200, 20, false), (40, 9, false), (8, 20, false), (8, 40, true), (8, 40, false)]
    {
        let (engine, _) = engine(pages, |it| it.limits.sequences = 4);
        let specs: Vec<Spec> = (0..12)
            .map(|it| Spec { prompt: prompt(if same { 0 } else { it }, len), ..filtered(Even, 12) })
            .collect();
        let unread: Vec<_> = specs.iter().map(|spec| engine.submit(request(spec)).unwrap()).collect();
        for number in 0..3 {
            let spec = generate(prompt(50 + number, 30), 60);
            let answer = read(engine.submit(patient(request(&spec))).unwrap());
            assert_eq!(answer.unwrap(), expected(&spec), "{pages} {len} {same}");
        }
        // Read one after the other, and together.
        let mut alone: Vec<(Generation, &Spec)> = unread.into_iter().zip(&specs).collect();
        let together = alone.split_off(6);
        let check = |(answer, spec): (Generation, &Spec)| {
            assert_eq!(read(answer).unwrap(), expected(spec), "{pages} {len} {same}")
        };
        alone.into_iter().for_each(check);
        std::thread::scope(|scope| together.into_iter().for_each(|it| drop(scope.spawn(move || check(it)))));
        assert_idle(&engine);
    }
}

/// Seconds from the first step to the end of `count` requests that came while the engine stood still.
fn seconds(count: u32, kind: &str) -> f64 {
    let (engine, control) = engine(200, |it| {
        it.limits = StepLimits::default();
        it.queue = 1 << 20;
    });
    let stand_still = control.gate.lock().unwrap();
    let mut answers = Vec::new();
    for number in 0..count {
        let own = if kind == "equal" { 0 } else { number };
        let mut request =
            request(&generate(vec![1 + own % 39, own / 39 % 40, own / 1560 % 40, own / 62400], 1));
        request.deadline = Some(Instant::now() + Duration::from_secs(3600 + u64::from(number)));
        answers.push(engine.submit(request).unwrap());
    }
    if kind == "cancelled" {
        answers.clear();
    }
    let begin = Instant::now();
    drop(stand_still);
    until("all have ended", || engine.stats().ended() == u64::from(count));
    let seconds = begin.elapsed().as_secs_f64();
    assert_idle(&engine);
    seconds
}

#[test]
fn a_queue_four_times_as_long_takes_four_times_as_long() {
    // Not "equal": those that join one answer take thirteen times as long for four times as many.
    for kind in ["different", "cancelled"] {
        // The best of five: a busy machine may stop any thread. A quadratic queue took sixteen times as long
        // each time.
        let mut least = f64::INFINITY;
        for _ in 0..5 {
            least = least.min(seconds(12_000, kind) / seconds(3_000, kind).max(0.02));
            if least < 9.0 {
                break;
            }
        }
        assert!(least < 9.0, "{kind}: {least}");
    }
}

#[test]
fn a_twin_has_its_own_clock() {
    let (engine, control) = engine(60, |_| {});
    control.pace_us.store(4000, Relaxed);
    let spec = generate(prompt(4, 10), 60);
    let mut first = engine.submit(request(&spec)).unwrap();
    for _ in 0..30 {
        assert!(matches!(first.wait(), Some(Event::Token(_))));
    }
    let begin = Instant::now();
    let mut second = engine.submit(request(&spec)).unwrap();
    let timings = |generation: &mut Generation| loop {
        match generation.wait().unwrap() {
            Event::Done(finish) => break finish.timings,
            Event::Error(error) => panic!("{error}"),
            _ => {}
        }
    };
    let late = timings(&mut second);
    let total = late.queue + late.prefill + late.decode;
    assert!(total <= begin.elapsed(), "{late:?} in {:?}", begin.elapsed());
    assert_eq!((late.queue, late.prefill), (Duration::ZERO, Duration::ZERO));
    assert!(timings(&mut first).decode > late.decode);
    assert_eq!(engine.stats().shared, 1);
}

/// Ends its own request at the third token.
struct Ends(Arc<OnceLock<Canceller>>);

impl Filter for Ends {
    fn filter(&self, _: &mut Logits, history: &History) -> Result<()> {
        if history.generated().len() == 2 {
            self.0.get().unwrap().cancel();
        }
        Ok(())
    }

    fn name(&self) -> &str {
        "ends"
    }
}

#[test]
fn a_filter_may_end_its_own_request() {
    let (engine, _) = engine(60, |_| {});
    let own = Arc::new(OnceLock::new());
    let mut running = engine.submit(request(&filtered(Ends(own.clone()), 50))).unwrap();
    assert!(own.set(running.canceller()).is_ok());
    let events: Vec<Event> = std::iter::from_fn(|| running.wait()).collect();
    let (Some(Event::Error(error)), 3) = (events.last(), events.len()) else { panic!("{events:?}") };
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_idle(&engine);
}

#[test]
fn a_request_that_is_made_later_is_told_of_as_any_other() {
    let (engine, _) = engine(60, |it| it.queue = 1);
    let spec = generate(prompt(1, 20), 5);
    let reserve = || {
        let told = Arc::new(AtomicBool::new(false));
        let flag = told.clone();
        let notify: Notify = Arc::new(move |must_look| {
            flag.fetch_or(must_look, Relaxed);
        });
        let (reservation, generation) = engine.reserve(Some(notify)).unwrap();
        (reservation, generation, told)
    };
    let (reservation, mut generation, told) = reserve();
    assert!(matches!(generation.next(Duration::ZERO), Poll::Pending));
    reservation.submit(request(&spec));
    assert_eq!(read(generation).unwrap(), expected(&spec));
    // The caller is told after the event is in its channel, so it may have been read before.
    let woken = |told: &AtomicBool| {
        let begin = Instant::now();
        while !told.load(Relaxed) && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_micros(100));
        }
        told.load(Relaxed)
    };
    assert!(woken(&told));

    type Way = fn(Reservation);
    let ways: [(&str, Way, ErrorKind); 3] = [
        ("refused", |it| it.refuse(Error::template("a template of the tests")), ErrorKind::Template),
        ("checked", |it| it.submit(request(&generate(vec![], 5))), ErrorKind::InvalidRequest),
        ("dropped", drop, ErrorKind::Internal),
    ];
    for (name, way, kind) in ways {
        let (reservation, generation, told) = reserve();
        way(reservation);
        assert_eq!(read(generation).unwrap_err().kind(), kind, "{name}");
        assert!(woken(&told), "{name}: who waits was not woken");
    }

    // Cancelled before there is a request.
    let (reservation, generation, _) = reserve();
    generation.cancel();
    assert!(reservation.is_cancelled());
    reservation.submit(request(&generate(prompt(1, 20), 100)));
    assert_eq!(read(generation).unwrap_err().kind(), ErrorKind::Cancelled);
    let (reservation, generation, _) = reserve();
    engine.close();
    reservation.submit(request(&spec));
    assert_eq!(read(generation).unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn pages_to_be_saved_are_held_until_they_are_read() {
    let saved = |engine: &EngineHandle, spec: &[u32]| -> Result<Vec<u8>> {
        let mut saving = engine.submit(Request::new(spec.to_vec(), Task::Pages))?;
        match saving.wait() {
            Some(Event::Pages(pages)) => Ok(pages),
            Some(Event::Error(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    };
    let (quiet, _) = engine(20, |_| {});
    let (busy, _) = engine(7, |_| {});
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (busy, over) = (&busy, &over);
            scope.spawn(move || {
                for number in (0..).take_while(|_| !over.load(Relaxed)) {
                    let spec = generate(prompt(thread * 1000 + number, 40), 8);
                    assert_eq!(ask(busy, &spec).unwrap(), expected(&spec));
                }
            });
        }
        for number in 0..40 {
            // Whole pages, and a rest that is not saved.
            let tokens = prompt(9000 + number, 64 + number as usize % 3);
            let (found, right) = (saved(&busy, &tokens), saved(&quiet, &tokens).unwrap());
            assert_eq!(right.len(), 4 * 12 * tallow::step::PAGE);
            assert!(found.is_ok_and(|found| found == right), "prefix {number}");
        }
        over.store(true, Relaxed);
    });
    assert_idle(&busy);
}

// --- A walk ----------------------------------------------------------------------------------------------

/// A request of a walk, and what has come of it.
struct Open {
    spec: Spec,
    answer: Answer,
    generation: Generation,
    /// It may end with `Timeout`, or with `Cancelled`.
    late: bool,
    cancelled: bool,
}

impl Open {
    /// Takes in what is there; true if it has ended, as it must.
    fn read(&mut self, timeout: Duration) -> bool {
        match self.generation.next(timeout) {
            Poll::Pending => false,
            Poll::Ended => panic!("it was read beyond its end"),
            Poll::Event(Event::Error(error)) => {
                let kind = error.kind();
                let may = (kind == ErrorKind::Timeout && self.late)
                    || (kind == ErrorKind::Cancelled && self.cancelled);
                assert!(may, "{error}");
                true
            }
            Poll::Event(event) => {
                let ended = self.answer.absorb(event);
                assert!(!ended || self.answer == expected(&self.spec), "{:?}", self.answer);
                ended
            }
        }
    }
}

/// Requests of all kinds that come, join others, wait for their callers, are preempted, fork, draft, are
/// cancelled and come too late. Each answer is right, and in this build the engine adds its pages and slots
/// up after every step.
fn walk(seed: u64, layout: &StateLayout) -> Stats {
    let (engine, control) = engine_of(layout.clone(), |it| it.limits.sequences = 4);
    let mut state = seed;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % bound
    };
    let mut open: Vec<Open> = Vec::new();
    for _ in 0..400 {
        match below(8) {
            0..3 if open.len() < 40 => {
                let again = open.last().filter(|_| below(4) == 0).map(|it| it.spec.clone());
                let mut spec = again.unwrap_or_else(|| match below(6) {
                    0 => repetitive(prompt(below(9) as u32, 20), 40, SamplerFields::default()),
                    _ => mixed(below(90)),
                });
                // Half of them have a beginning in common, of several lengths.
                if below(2) == 0 {
                    spec.prompt = [prompt(500, [16, 40, 70][below(3)]), spec.prompt].concat();
                    spec.prompt.truncate(110);
                }
                let (mut request, late) = (request(&spec), below(8) == 0);
                request.deadline = late.then(|| Instant::now() + Duration::from_micros(below(3000) as u64));
                // Some could not be held by 24 pages.
                if let Ok(generation) = engine.submit(request) {
                    open.push(Open { spec, answer: Answer::default(), generation, late, cancelled: false });
                }
            }
            3..6 if !open.is_empty() => {
                let at = below(open.len());
                let ended = (0..below(30)).any(|_| open[at].read(Duration::from_micros(200)));
                if ended {
                    open.swap_remove(at);
                }
            }
            6 if !open.is_empty() => {
                let at = below(open.len());
                open[at].cancelled = true;
                open[at].generation.cancel();
                if below(2) == 0 {
                    open.swap_remove(at);
                }
            }
            7 => control.pace_us.store([0, 0, 100, 300][below(4)], Relaxed),
            _ => std::thread::sleep(Duration::from_micros(below(500) as u64)),
        }
    }
    control.pace_us.store(0, Relaxed);
    for mut last in open {
        let begin = Instant::now();
        while !last.read(Duration::from_secs(1)) {
            assert!(begin.elapsed() < Duration::from_secs(60), "a request is stuck: {:?}", engine.stats());
        }
    }
    assert_idle(&engine);
    engine.stats()
}

/// Groups of state that a model may have, too little of each for what comes.
fn layouts() -> Vec<(&'static str, StateLayout)> {
    let of = |windows: &[Option<usize>], pages, slots| {
        let paged = windows.iter().map(|&window| PagedGroup { window }).collect();
        StateLayout { paged, pages, slots }
    };
    vec![
        ("one group", StateLayout::plain(24)),
        ("a window", of(&[None, Some(20)], 34, 0)),
        ("windows of several sizes", of(&[None, Some(1), Some(16), Some(50)], 60, 0)),
        ("recurrent state", of(&[None], 24, 7)),
        ("both", of(&[None, Some(30)], 36, 12)),
    ]
}

#[test]
fn whatever_comes_in_whatever_order_each_answer_is_its_own() {
    let mut steps = 0;
    for (name, layout) in layouts() {
        let walks: Vec<Stats> = (1..=8).map(|seed| walk(seed, &layout)).collect();
        let sum = |of: fn(&Stats) -> u64| walks.iter().map(of).sum::<u64>();
        let seen = [
            sum(|it| it.completed),
            sum(|it| it.failed),
            sum(|it| it.cancelled),
            sum(|it| it.shared),
            sum(|it| it.preempted),
            sum(|it| it.accepted),
        ];
        assert!(seen.iter().all(|&count| count > 5), "{name}: the walks were too easy: {seen:?}");
        steps += sum(|it| it.steps);
    }
    assert!(steps > 10_000, "{steps} steps");
}

#[test]
fn a_long_text_fits_because_windows_give_pages_back() {
    // 195 positions are 13 pages of the first group, and 13 of the second if none came back.
    let paged = vec![PagedGroup { window: None }, PagedGroup { window: Some(20) }];
    let (engine, _) = engine_of(StateLayout { paged, pages: 18, slots: 0 }, |_| {});
    for prefix in 0..2 {
        let spec = generate(prompt(prefix, 180), 15);
        let answer = read(engine.submit(patient(request(&spec))).unwrap());
        assert_eq!(answer.unwrap(), expected(&spec));
    }
    assert_idle(&engine);
}

#[test]
fn requests_of_another_adapter_share_nothing() {
    let (engine, control) = engine(60, |_| {});
    let spec = generate(prompt(3, 70), 6);
    let (slots, adapter) = (AdapterSlots::default(), Arc::new(BoundAdapter::default()));
    let lease = |salt| (salt != 0).then(|| slots.lease(&adapter, salt));
    let of = |salt| request(&spec).with(lease(salt));
    let cached = |salt| {
        let before = engine.stats().cached_tokens;
        assert_eq!(read(engine.submit(of(salt)).unwrap()).unwrap(), expected(&spec));
        engine.stats().cached_tokens - before
    };
    assert_eq!([0, 0, 9, 9, 8].map(cached), [0, 64, 0, 64, 0]);
    let standing = control.gate.lock().unwrap();
    let together = [0, 9, 9].map(|salt| engine.submit(of(salt)).unwrap());
    drop(standing);
    together.into_iter().for_each(|answer| assert_eq!(read(answer).unwrap(), expected(&spec)));
    assert_eq!(engine.stats().shared, 1);
}
