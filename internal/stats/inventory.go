package stats

import (
	"cmp"
	"slices"

	"github.com/tcptrace/tcptrace/internal/tcp"
)

// InventoryReport is the sockets of one look, in order: by state, the oldest first. It is valid
// until Show returns.
type InventoryReport struct {
	Time  int64 // wall clock of the first row, or of the end of a look without rows, ns since the Unix epoch
	Rows  []*tcp.Event
	Total SocketCounts // of the look so far
	// More: there are more than MaxRows sockets, and the others come in further reports, each
	// of which is sorted by itself. What follows is then in the last one.
	More   bool
	Hidden uint64 // sockets that come after Rows, with InventoryConfig.Top

	TimeWaits     []TimeWaitGroup // sockets in TIME_WAIT that have no row
	TimeWaitsRest uint64          // ... and are in no group: there was no room for it
}

// MaxRows is how many sockets are sorted at once, in 100 MB at most.
const MaxRows = 1 << 18

// pageRows is by how many rows the memory grows: without a copy of what is there.
const pageRows = 1024

// InventoryConfig says what to make of the rows.
type InventoryConfig struct {
	SumTimeWait bool // sockets in TIME_WAIT are summed up, and have no rows
	Top         int  // keep the first ones alone; 0: all
	Rows        int  // so many are sorted at once; 0: MaxRows
	Show        func(*InventoryReport) error
}

// Inventory sorts the sockets of a look.
type Inventory struct {
	cfg    InventoryConfig
	listen Listeners
	waits  *timeWaits
	total  SocketCounts
	pages  [][]tcp.Event
	rows   []*tcp.Event
	hidden uint64
	time   int64
}

// NewInventory returns an empty one.
func NewInventory(cfg InventoryConfig) *Inventory {
	cfg.Rows = max(cmp.Or(cfg.Rows, MaxRows), 2*cfg.Top)
	i := &Inventory{cfg: cfg}
	i.clear()
	return i
}

// clear forgets a look. The memory for rows is used again.
func (i *Inventory) clear() {
	i.listen, i.waits, i.total, i.time = NewListeners(), newTimeWaits(), SocketCounts{}, 0
	i.rows, i.hidden = i.rows[:0], 0
}

// Listeners are those that tell the roles of sockets in TIME_WAIT.
func (i *Inventory) Listeners() Listeners { return i.listen }

// Add takes a row, of which it keeps a copy. Rows of listeners come before those of their
// connections.
func (i *Inventory) Add(e *tcp.Event) error {
	i.total.add(e.New)
	i.time = cmp.Or(i.time, e.Time)
	if e.New == tcp.TimeWait && i.cfg.SumTimeWait {
		row := *e
		i.listen.complete(&row)
		i.waits.add(&row)
		return nil
	}
	if len(i.rows) == i.cfg.Rows {
		if err := i.makeRoom(); err != nil {
			return err
		}
	}
	*i.next() = *e
	return nil
}

// makeRoom drops what is not among the first, or shows all that is there.
func (i *Inventory) makeRoom() error {
	if i.cfg.Top == 0 {
		err := i.cfg.Show(i.report(true))
		i.rows = i.rows[:0]
		return err
	}
	var first []tcp.Event
	for _, row := range i.sorted()[:i.cfg.Top] {
		first = append(first, *row)
	}
	i.hidden += uint64(len(i.rows) - i.cfg.Top)
	i.rows = i.rows[:0]
	for n := range first {
		*i.next() = first[n]
	}
	return nil
}

// next is the place of the next row.
func (i *Inventory) next() *tcp.Event {
	n := len(i.rows)
	if n == len(i.pages)*pageRows {
		i.pages = append(i.pages, make([]tcp.Event, pageRows))
	}
	row := &i.pages[n/pageRows][n%pageRows]
	i.rows = append(i.rows, row)
	return row
}

// End shows what is left of the look, which ended at that wall clock, and begins another.
func (i *Inventory) End(wall int64) error {
	i.time = cmp.Or(i.time, wall)
	err := i.cfg.Show(i.report(false))
	i.clear()
	return err
}

// sorted leaves rows in the order of pages.
func (i *Inventory) sorted() []*tcp.Event {
	sorted := slices.Clone(i.rows)
	slices.SortFunc(sorted, compareRows)
	return sorted
}

func (i *Inventory) report(more bool) *InventoryReport {
	r := &InventoryReport{Time: i.time, Rows: i.sorted(), Total: i.total, Hidden: i.hidden, More: more}
	if i.cfg.Top > 0 && len(r.Rows) > i.cfg.Top {
		r.Hidden += uint64(len(r.Rows) - i.cfg.Top)
		r.Rows = r.Rows[:i.cfg.Top]
	}
	if !more {
		r.TimeWaits, r.TimeWaitsRest = i.waits.list(), i.waits.rest
	}
	return r
}

// StateOrder is the order of the states for people: that of a connection's life.
var StateOrder = []tcp.State{
	tcp.Listen, tcp.SynSent, tcp.SynRecv, tcp.Established, tcp.FinWait1, tcp.FinWait2, tcp.Closing,
	tcp.CloseWait, tcp.LastAck, tcp.TimeWait, tcp.Close,
}

// stateRanks are the places of the states in StateOrder.
var stateRanks = func() (ranks [tcp.NewSynRecv + 1]uint8) {
	for i, s := range StateOrder {
		ranks[s] = uint8(i)
	}
	return ranks
}()

func rankOf(e *tcp.Event) uint8 { return stateRanks[min(e.New, tcp.NewSynRecv)] }

// age is how long a row has been in its state at least; 0: not known.
func age(e *tcp.Event) uint64 {
	if !e.DurationKind.Known() {
		return 0
	}
	return e.Duration
}

// compareRows puts rows of a state that have no age in the order of their addresses.
func compareRows(a, b *tcp.Event) int {
	if c := cmp.Or(cmp.Compare(rankOf(a), rankOf(b)), cmp.Compare(age(b), age(a)), cmp.Compare(a.NetNS, b.NetNS)); c != 0 {
		return c
	}
	return cmp.Or(a.Local.Compare(b.Local), a.Remote.Compare(b.Remote), cmp.Compare(a.Cookie, b.Cookie))
}
