"""The page's style sheet: phone, screen and paper, in light and dark."""

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --a: 0%;
  --bg: #ffffff; --card: #f6f8fa; --ink: #1f2328; --dim: #57606a;
  --edge: #d0d7de; --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --bad: #b62324;
  --warn: #7d4e00; --good: #1a7f37 }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --card: #161b22; --ink: #e6edf3;
  --dim: #9198a1; --edge: #30363d; --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff;
  --bad: #ff7b72; --warn: #e3b341; --good: #56d364 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem;
  background: var(--bg); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100% }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 } h3 { font-size: 1.05rem; margin: 0 }
[id] { scroll-margin-top: 1rem } :target { text-decoration: underline }
a { color: var(--c0) } p { margin: .5rem 0; max-width: 46rem }
.dim { color: var(--dim) } .small { font-size: .875rem }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap }
p.verdict::first-letter, .sentence::first-letter { text-transform: uppercase }
.verdict { font-size: 1.05rem; padding-left: 1.25rem; max-width: 60rem } p.verdict { padding: 0 }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem .75rem; padding: 0;
  margin: .75rem 0 }
nav a { display: inline-block; padding: .2rem .6rem; border: 1px solid var(--edge);
  border-radius: .5rem; text-decoration: none }
main > section { margin-top: 2rem }
section.round:not(:first-child) { border-top: 1px solid var(--edge); padding-top: 1.25rem }
.head { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .75rem }
.state, .outcome { white-space: nowrap } .outcome { color: var(--c) }
.outcome.mute { color: var(--dim) }
.state { border: 1px solid; border-radius: 1rem; padding: 0 .6rem; font-size: .875rem }
.completed { color: var(--good) } .failed { color: var(--bad); font-weight: 600 }
.awaiting, .aggregating { color: var(--warn) }
.cause { border-left: .25rem solid var(--bad); background: var(--card); padding: .5rem .75rem;
  margin: .75rem 0 }
details.part { border: 1px solid var(--edge); border-radius: .5rem; margin: .5rem 0 }
.part > summary { padding: .5rem .75rem; cursor: pointer }
.part > summary h3 { display: inline } .summary { color: var(--dim); margin-left: .35rem }
.part[open] > summary { border-bottom: 1px solid var(--edge) }
.content { padding: .25rem .75rem .75rem }
.listing > summary { cursor: pointer; padding: .35rem 0; color: var(--c0); font-size: .9rem }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--c0) }
figure { margin: .75rem 0; min-width: 0; break-inside: avoid }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .6rem }
.plot { display: grid; grid-template-columns: 3rem 1fr; font-size: .75rem; color: var(--dim);
  margin-right: 1.25rem }
.plot svg { grid-column: 2; width: 100%; height: var(--height); overflow: visible;
  border-bottom: 1px solid var(--dim) }
.ys { position: relative; height: var(--height) }
.ys span { position: absolute; right: .5rem; transform: translateY(50%); white-space: nowrap }
.xs { grid-column: 2; position: relative; height: 1.6rem }
.xs span { position: absolute; top: .25rem; transform: translateX(-50%); white-space: nowrap }
.xs span.last { transform: translateX(-100%); left: calc(100% + 1.25rem) !important }
.grid { stroke: var(--edge); vector-effect: non-scaling-stroke; fill: none }
.line { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke }
.dash { stroke-dasharray: 6 4 }
.dot { stroke-width: 8px; stroke-linecap: round; vector-effect: non-scaling-stroke; fill: none }
.c0 { --c: var(--c0) } .c1 { --c: var(--c1) } .c2 { --c: var(--c2) } .c3 { --c: var(--c3) }
.bad { --c: var(--bad) } .mute { --c: var(--dim) }
.line, .dot { stroke: var(--c) } .cell { fill: var(--c) }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .25rem 0 0;
  padding: 0 0 0 3rem; font-size: .8rem; color: var(--dim) }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem;
  background: var(--c); margin-right: .4rem }
.scroll { overflow-x: auto; max-width: 100%; margin-top: .75rem }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: .25rem 0 }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem .35rem;
  border-bottom: 1px solid var(--edge); overflow-wrap: anywhere }
th { font-weight: 600 } thead th { color: var(--dim); vertical-align: bottom;
  line-height: 1.25; overflow-wrap: break-word }
.number { text-align: right } .time, .number { overflow-wrap: normal; white-space: nowrap }
thead .number { white-space: normal } td:not([class]) { min-width: 4rem }
.cards tbody th { min-width: 8rem }
td.bar { min-width: 4.5rem }
.bar { background: linear-gradient(90deg, transparent var(--a), var(--c) var(--a) var(--b),
  transparent var(--b)) .5rem 1.85em / calc(100% - 1rem) 4px no-repeat }
@media (max-width: 40rem) {
  table.cards, .cards tbody, .cards caption { display: block } .cards thead { display: none }
  .cards tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr));
    gap: 0 .75rem; align-items: start; padding: .5rem 0; border-bottom: 1px solid var(--edge) }
  .cards th, .cards td { display: block; border: 0; padding: .1rem 0 .3rem; text-align: left;
    min-width: 0; overflow-wrap: anywhere; white-space: normal }
  .cards tbody th { grid-column: 1 / -1 } .cards td:empty { display: none }
  .cards td::before { content: attr(data-label); display: block; color: var(--dim);
    font-size: .75rem; line-height: 1.2; unicode-bidi: isolate; overflow: hidden;
    max-height: 2.4em }
  .cards td[data-label=reason] { grid-column: 1 / -1 }
  .cards .bar { background-position: 0 calc(100% - 1px); background-size: 100% 4px }
}
@media print {
  :root { --bg: #ffffff; --card: #f6f8fa; --ink: #000000; --dim: #444444; --edge: #bbbbbb;
    --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --bad: #b62324; --good: #1a7f37;
    --warn: #7d4e00; color-scheme: light }
  body { max-width: none; font-size: 10pt; padding: 0 } nav { display: none }
  section.round { break-before: page; border: 0; margin: 0; padding: 0 }
  h2, h3, summary { break-after: avoid } tr, .cause { break-inside: avoid }
  details::details-content { content-visibility: visible; block-size: auto }
  .scroll { overflow: visible } table { font-size: 8pt } .state { font-size: inherit }
  th, td { padding: .15rem .25rem .35rem } .bar { background-position: .25rem 1.85em }
  .cards tbody th, .cards td { min-width: 3rem }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
"""
