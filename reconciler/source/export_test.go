package source

// ObjectsRead counts the directories and commits that the open store has read.
func ObjectsRead(s *Source) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store == nil {
		return 0
	}
	return s.store.reads
}
