// Package workload holds the requests that simulations and load tests send:
// when each arrives, how long it is, and which blocks of its prompt others
// share.
//
// # File format
//
// One JSON object a line, plain or gzip-compressed, in the format of the
// Mooncake traces (kvcache-ai/Mooncake, FAST25-release: "timestamp",
// "input_length", "output_length", "hash_ids"), with further optional fields:
//
//		{"timestamp": 1500, "input_length": 1100, "output_length": 40, "hash_ids": [0, 7, 9],
//		 "session": "a", "lora": "x", "output_hash_ids": [12]}
//
//	  - timestamp is the arrival in milliseconds since the start, fractions
//	    allowed; lines are in order of it.
//	  - hash_ids names the blocks of 512 tokens of the prompt. Equal ids are equal
//	    blocks behind equal histories. The last block may be partial.
//	  - output_hash_ids continues hash_ids from the first block that the prompt
//	    does not fill, for answers that become part of later prompts. Without it
//	    the blocks that an answer fills are never asked for again.
package workload
