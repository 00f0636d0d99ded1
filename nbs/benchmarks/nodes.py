#!/usr/bin/env python3
"""Sweeps on a Slurm of two nodes that share nothing but files: each has processes, a host name, scratch and a temporary folder of its own. Every line is one event, as JSON.

    python nodes.py array    nodes.jsonl --folder DIR         three cells at a time on both nodes, in scratch
    python nodes.py moved    nodes.jsonl --folder DIR --n 3   a cell in scratch that has to go to the other node, and back again
    python nodes.py together nodes.jsonl --folder DIR --n 2   a cell of one process on each node, and one of two on each, disturbed
    python nodes.py shells   nodes.jsonl --folder DIR --n 6   the submitting shell is ended in its first moments, and the same command is given again at once

It needs root, the daemons of Slurm (Debian: slurm-wlm and munge), and a folder that is not below a temporary one, where what nothing disturbed is kept. At the end each cell is held
against one that nothing disturbed, byte for byte, and its steps are counted, as in sweep.py.
"""
import argparse,contextlib,json,os,random,re,shutil,signal,subprocess,sys,time
from pathlib import Path

import psutil

import sweep
from sweep import Desk,SWEEPS,ask,at_work,doing,held,jobs,live,names,quiet_sweep,states,until

NODES = 'nodeA','nodeB'
CYCLE = SWEEPS['cycle'].replace('sharpening=discriminative,per_example,per_class', 'sharpening=per_class').replace('sae_epochs=80', 'sae_epochs=400').replace('epochs=45', 'epochs=150')
LM = SWEEPS['lm_sae'].replace('architecture=batchtopk,relu', 'architecture=batchtopk')
SCRATCH = '--slurm time=1h cpus-per-task=4 scratch=$SWEEP_SCRATCH' # a cell fills a node
SWEEPS |= dict(cell=CYCLE, pair=LM, four=LM, pair1=LM, four1=LM) # the last two on one node
sweep.HOW |= {'slurm-cycle': SCRATCH, 'slurm-cell': SCRATCH + ' partition=low', 'jobs-cell': '', 'slurm-pair': '--slurm time=1h nodes=2', 'slurm-four': '--slurm time=1h nodes=2 processes=2',
              'slurm-pair1': '--slurm time=1h processes=2', 'slurm-four1': '--slurm time=1h processes=4'}

# ------------------------------------------------------------------ the nodes
class Nodes:
    "A Slurm of two nodes, in a folder"
    def __init__(self, desk):
        self.box,self.starter = desk.path/'box',Path(__file__).resolve().parents[2]/'.ci/slurm'
        os.environ |= dict(SLURM_CONF=str(self.box/'slurm.conf'), SWEEP_SCRATCH=str(self.box/'scratch'), TMPDIR=str(self.box/'tmp'))
    def do(self, *words): subprocess.run([self.starter, words[0], self.box, *words[1:]], check=True)
    def first(self, node): return psutil.Process(int((self.box/f'{node}.pid').read_text()))
    def work(self, node): return [o for o in self.first(node).children(recursive=True) if o.name() not in ('slurmd', 'munged')] # of jobs
    def scratch(self, node): return sorted(o.name for o in (self.box/'of'/node/'scratch').glob('runs/*'))
    def state(self, node, to): ask('scontrol', 'update', f'NodeName={node}', f'State={to}', 'Reason=test')

def at(job): return re.search(r' NodeList=(\S*)', ask('scontrol', 'show', 'job', '-o', job).stdout)[1]

# ------------------------------------------------------------------ what makes a cell move
def signal_it(nodes, job, node): ask('scancel', '--batch', '--signal=USR1', job)
def requeue(nodes, job, node): ask('scontrol', 'requeue', job)
def preempt(nodes, job, node): ask('sbatch', '--partition=high', '--cpus-per-task=4', f'--nodelist={node}', '--output=/dev/null', '--wrap', 'sleep 40')
def lose(nodes, job, node): nodes.first(node).kill() # and Slurm finds out by itself that the node does not answer
def silence(nodes, job, node): next(o for o in nodes.first(node).children() if o.name() == 'slurmd').suspend() # the job works on, unseen
def freeze(nodes, job, node): # all that the node does, for a while
    for o in [nodes.first(node), *nodes.first(node).children(recursive=True)]: o.suspend()
MOVES = {'SIGUSR1 by scancel': signal_it, 'scontrol requeue': requeue, 'preempted': preempt, 'node lost': lose, 'slurmd hangs': silence, 'node hangs': freeze}
DRAINED = 'SIGUSR1 by scancel', 'scontrol requeue' # these leave the node as it is, so it is drained first

def mend(nodes, node, what):
    "The node is as before"
    if what in DRAINED: nodes.state(node, 'RESUME')
    elif what == 'node lost': nodes.do('node', node)
    elif 'hangs' in what:
        for o in [nodes.first(node), *nodes.first(node).children(recursive=True)]:
            with contextlib.suppress(psutil.Error): o.resume()
    if what not in DRAINED: until(lambda: ask('sinfo', '-h', '-n', node, '-p', 'debug', '-o', '%T').stdout.strip() in ('idle', 'mixed', 'allocated'), 90)

def begun(desk, out, name, since=0., patience=240): # a cell is in the middle of its work
    return until(lambda: at_work(desk, out, name) > since or states(out).get(name, ('',))[0] not in ('running', 'waiting'), patience, .2) and states(out)[name][0] == 'running'

def move(desk, nodes, out, name, what, rng, alone):
    "Disturb a cell, and see where it goes on; nothing if it came too late"
    if not begun(desk, out, name, time.time() - 1): return None
    time.sleep(rng.uniform(0, 4))
    job,_,before = jobs(out, name)
    if states(out)[name][0] != 'running' or not (node := at(job)): return None
    victim = rng.choice(NODES) if not alone else node
    if what in DRAINED and alone: nodes.state(node, 'DRAIN')
    where,when = doing(desk, out, name),time.time()
    MOVES[what](nodes, job, victim)
    seen = []
    def look():
        if (now := states(out).get(name)) not in seen: seen.append(now)
        return jobs(out, name)[2] > before and jobs(out, name)[1] in ('RUNNING', 'COMPLETED', 'FAILED') or now[0] not in ('running', 'waiting')
    if not alone and what == 'node lost': until(lambda: look() or 'PENDING' in jobs(out, name)[1], 120); mend(nodes, victim, what) # it needs both
    ok = until(look, 240)
    row = dict(fault=what, cell=name, at=where, nodes=[node, at(job)], seconds=round(time.time() - when, 1))
    begun(desk, out, name, when + row['seconds'], 60)
    time.sleep(2)
    if states(out)[name] not in seen: seen.append(states(out)[name])
    row['left_on_the_first'] = nodes.scratch(node)
    if alone or what != 'node lost': mend(nodes, victim, what)
    stray = [o for o in seen if o[0] not in ('running', 'waiting', 'done')]
    return row | dict(right=bool(ok) and not stray, seen=seen)

# ------------------------------------------------------------------ series
def finish(desk, words, out, reference, quiet, kind, nodes, given=1):
    "Wait, give the command again as long as something is missing, and look at what came of it"
    while True:
        until(lambda: not live(out) and not ask('squeue', '-h', '-t', 'PD,R,CG').stdout.strip(), 600)
        if given > 5 or (states(out) and all(s == 'done' for s,_ in states(out).values()) and (out/'sweep.json').exists()): break
        given += 1; desk.start(words).wait()
    left = {o: nodes.scratch(o) for o in NODES}
    shown = ask(sys.executable, '-m', 'sae_ception', 'runs', f'runs/{out.name}', cwd=desk.path)
    return dict(fault='end', given=given, left_in_scratch=left, shown=(shown.stdout + shown.stderr)[-1500:], **held(out, desk.trace, reference, quiet, False))

def begin(desk, kind, name):
    words,out = desk.begin(kind, name)
    shutil.rmtree(out, ignore_errors=True); shutil.rmtree(desk.trace, ignore_errors=True); desk.trace.mkdir()
    return words,out

def array(desk, nodes, rng, n):
    "Cells on both nodes"
    reference,quiet = quiet_sweep(desk, 'jobs-cycle')
    for i in range(n):
        words,out = begin(desk, 'slurm-cycle', f'array-{i}')
        code,used,apart = desk.start(words).wait(),{},True
        def look():
            for name,(state,_) in states(out).items():
                if state == 'running': used[name] = at(jobs(out, name)[0])
            lie = [{*nodes.scratch(o)} for o in NODES]
            return not live(out) and used or lie[0] & lie[1]
        until(look, 600, .3)
        yield dict(fault='none', right=code == 0, nodes=sorted({*used.values()}), cells=len(used))
        yield finish(desk, words, out, reference, quiet, 'cycle', nodes)

def moved(desk, nodes, rng, n, only=None):
    "Each disturbance moves a cell; two in a sweep, so that it comes back to where it was"
    reference,quiet = quiet_sweep(desk, 'jobs-cell')
    deck = sweep.Deck(rng, [o for o in MOVES if not only or any(k in o for k in only)])
    for i in range(n):
        words,out = begin(desk, 'slurm-cell', f'moved-{i}')
        desk.start(words).wait()
        name = next(iter(names(out).values()))
        for _ in range(2):
            what = deck.draw()
            if row := move(desk, nodes, out, name, what, rng, True): yield row
            else: deck.left.append(what); break
        yield finish(desk, words, out, reference, quiet, 'cell', nodes)

def together(desk, nodes, rng, n, only=None):
    "Cells whose processes are on both nodes"
    deck = sweep.Deck(rng, [o for o in ('SIGUSR1 by scancel', 'scontrol requeue', 'node lost') if not only or any(k in o for k in only)])
    for kind in 'pair','four':
        reference,quiet = quiet_sweep(desk, f'slurm-{kind}1')
        for i in range(n):
            words,out = begin(desk, f'slurm-{kind}', f'together-{kind}-{i}')
            desk.start(words).wait()
            name = next(iter(names(out).values()))
            begun(desk, out, name, 1)
            note = next((json.loads(o.read_text()) for o in (out/name/'processes').glob('meet-*.json')), {})
            where = {(env := o.environ())['RANK']: env['SLURMD_NODENAME'] for o in psutil.process_iter() if sweep.belongs(o, out) and 'ipykernel_launcher' in ' '.join(sweep.command(o))}
            yield dict(fault='none', right={*where.values()} == {*NODES}, met_at=note.get('host'), ranks=where)
            for _ in range(2 if i else 1):
                what = deck.draw()
                if row := move(desk, nodes, out, name, what, rng, False): yield row
                else: deck.left.append(what); break
            yield finish(desk, words, out, reference, quiet, kind, nodes)

def shells(desk, nodes, rng, n, only=None):
    "The command is ended in its first moments by SIGKILL, with what it has started or without it, or by SIGHUP, and given again at once"
    reference,quiet = quiet_sweep(desk, 'jobs-cell')
    slow = desk.path/'slow'; slow.mkdir(exist_ok=True)
    (slow/'sbatch').write_text(f'#!/bin/bash\n[ "$1" = --test-only ] || sleep $((RANDOM % 7)); {shutil.which("sbatch")} "$@"; code=$?; [ "$1" = --test-only ] || sleep 1; exit $code\n'); (slow/'sbatch').chmod(0o755)
    os.environ['PATH'] = f'{slow}:{os.environ["PATH"]}' # as on a busy cluster: a job is sent within 1 to 7 seconds
    ways = sweep.Deck(rng, [(how, when) for how in ('SIGKILL', 'SIGKILL to all', 'SIGHUP to all') for when in ('soon', 'while it sends')])
    for i in range(n):
        words,out = begin(desk, 'slurm-cell', f'shells-{i}')
        how,when = ways.draw()
        p = desk.start(words)
        if when == 'soon': time.sleep(rng.uniform(0, 6))
        else: until(lambda: p.poll() is not None or list(out.glob('slurm/[0-9]*')), 60, .01); time.sleep(rng.uniform(0, 6))
        late = p.poll() is not None
        with contextlib.suppress(ProcessLookupError): (os.killpg if 'all' in how else os.kill)(p.pid, getattr(signal, how.split()[0]))
        p.wait()
        found = sorted(o.name for o in out.glob('slurm/1/*'))
        again = desk.start(words); code = again.wait(); said = desk.said
        time.sleep(8) # what was under way has arrived
        sent = [o.split() for o in ask('squeue', '-h', '-r', '-t', 'all', '-o', '%F %K %o').stdout.splitlines() if str(out) in o]
        parts = [o for o in sent if not o[2].endswith('report.sh')]
        told = states(out)
        right = code in (0, 2) and len(parts) == 1 and all(s in ('waiting', 'running') for s,_ in told.values()) and len(told) == 1
        yield dict(fault=f'{how}, {when}', late=late, found=found, again=code, said=said.strip().splitlines()[-1:], jobs=len(parts), reports=len(sent) - len(parts), right=right, seen=sorted(told.items()))
        if i % 3 == 2: yield finish(desk, words, out, reference, quiet, 'cell', nodes)
        else: subprocess.run(['scancel', '--user=root']); until(lambda: not ask('squeue', '-h', '-t', 'PD,R,CG').stdout.strip(), 60)

SERIES = dict(array=array, moved=moved, together=together, shells=shells)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('what', choices=[*SERIES])
    a.add_argument('out', help='file of JSON lines to append to')
    a.add_argument('--folder', required=True, help='where to work')
    a.add_argument('--n', type=int, default=1, help='how many sweeps')
    a.add_argument('--seed', type=int, default=0, help='decides what is random')
    a.add_argument('--only', type=lambda o: o.split(','), help='draw only what has one of these words in its name')
    a = a.parse_args()
    desk = Desk(a.folder)
    nodes = Nodes(desk)
    nodes.do('up', *NODES)
    try:
        from sae_ception.run import versions
        for row in SERIES[a.what](desk, nodes, random.Random(f'{a.what} {a.seed}'), a.n, *([a.only] if a.only else [])):
            text = json.dumps(dict(series=a.what, seed=a.seed, **row)).replace(str(desk.path), '/desk').replace(sweep.HOST, 'here')
            print(text, flush=True)
            with open(a.out, 'a') as f: f.write(text + '\n')
        with open(a.out, 'a') as f: f.write(json.dumps(dict(series=a.what, seed=a.seed, fault='about', versions=versions())) + '\n')
    finally: nodes.do('down')

if __name__ == '__main__': main()
