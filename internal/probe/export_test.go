package probe

// LookAway detaches every hook, so that the kernel runs none of the programs, as for
// what happens while it keeps them from running. LookAgain attaches them.
func (p *Probe) LookAway() {
	for _, l := range p.links {
		l.Close()
	}
	p.links = nil
}

func (p *Probe) LookAgain() (err error) {
	p.links, err = p.cover.attach(&p.objs.bpfPrograms)
	return err
}
