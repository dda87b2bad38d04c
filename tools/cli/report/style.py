"""The style sheet of the report page: nothing in it names a place elsewhere."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --dim: #626d7a; --line: #dde2e8; --soft: #f4f6f8; --paper: #fff;
  --done: #2f6fde; --cached: #2e9e5b; --failed: #d0342c; --cancelled: #98a1ab; --pull: #e39a1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --dim: #98a3b0; --line: #38414b; --soft: #20262d;
  --paper: #15191e; --done: #5b93f5; --cached: #45bb77; --failed: #f06a62; --cancelled: #6d7783; --pull: #eeb04a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 15px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; }
h3 { font-size: .9rem; margin: .75rem 0 .25rem; }
a { color: inherit; text-decoration: none; }
a:hover { text-decoration: underline; }
.dim, footer, dt, .took, th { color: var(--dim); }
footer { margin-top: 2rem; font-size: .85rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dd { margin: 0; }
dd, .wrap { overflow-wrap: anywhere; }
.chip { display: inline-block; padding: 0 .5em; border-radius: .6em; font: 600 .8rem/1.6 system-ui, sans-serif;
  color: var(--paper); background: var(--cancelled); vertical-align: middle; }
.chip.done, .chip.completed, .chip.running { background: var(--done); }
.chip.cached { background: var(--cached); }
.chip.failed { background: var(--failed); }
.chip.completed { background: var(--cached); }
pre { margin: .25rem 0; font: 12.5px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.code { padding: .5rem .75rem; background: var(--soft); border-radius: 4px; }
.fault { border-left: 3px solid var(--failed); padding-left: .75rem; }
.fault h2 { margin-top: 1rem; color: var(--failed); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 0 0 .5rem; font-size: .85rem; color: var(--dim); }
.legend i { display: inline-block; width: .9em; height: .7em; margin-right: .35em; border-radius: 2px; }
.legend .done { background: var(--done); }
.legend .cached { background: var(--cached); }
.legend .failed { background: var(--failed); }
.legend .cancelled { background: var(--cancelled); }
.legend .pull { background: var(--pull); }
.row { display: grid; grid-template-columns: minmax(8rem, 32%) minmax(0, 1fr) 4.5rem; gap: .75rem; padding: .15rem 0;
  border-top: 1px solid var(--line); }
.row:first-child { border: 0; }
.row > a, .nodes li { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: .85rem; }
.row > a { line-height: 16px; }
.took { font-size: .8rem; line-height: 16px; text-align: right; }
.bars, .scale { display: block; width: 100%; overflow: visible; }
.scale text { font: 11px system-ui, sans-serif; fill: var(--dim); }
.bars line { stroke: var(--line); }
rect, circle { fill: var(--cancelled); stroke: var(--cancelled); }
rect { stroke-width: 1px; }
.done, .running { fill: var(--done); stroke: var(--done); }
.cached { fill: var(--cached); stroke: var(--cached); }
.failed { fill: var(--failed); stroke: var(--failed); }
rect.pull { fill: var(--pull); stroke: var(--pull); }
rect.pull.failed { fill: var(--failed); stroke: var(--failed); }
.nodes { display: flex; gap: .5rem; overflow-x: auto; }
.nodes ol { list-style: none; margin: 0; padding: 0; min-width: 10rem; flex: 1; }
.nodes li { height: 24px; line-height: 24px; }
.graph { flex: none; }
.graph path { fill: none; stroke: var(--dim); stroke-width: 1.5; }
.graph circle { stroke: var(--paper); stroke-width: 1.5; }
details.step { border-top: 1px solid var(--line); padding: .35rem 0; }
details.step:target > summary { background: var(--soft); }
summary { cursor: pointer; overflow-wrap: anywhere; }
.step > :not(summary) { margin-left: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .85rem; }
th, td { padding: .1rem 1.25rem .1rem 0; text-align: left; font-variant-numeric: tabular-nums; }
th { font-weight: 400; }
th, td { white-space: nowrap; }
td:last-child { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
.n { text-align: right; }
@media (max-width: 40rem) {
  .row { grid-template-columns: minmax(0, 1fr) max-content; gap: .1rem .5rem; }
  .row > svg { grid-column: 1 / -1; grid-row: 2; }
  .step > :not(summary) { margin-left: 0; }
  .nodes .dim { display: none; }
}
"""
